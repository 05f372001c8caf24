"""Runs whose ranks torchrun, srun or mpirun start, on this machine or on several."""
