"""Runs that torchrun, srun or mpirun start, on this machine or on several."""
