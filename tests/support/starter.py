"""A launcher for tests, `starter.py KIND COUNT COMMAND…`: starts processes side by side and tells them their numbers as
srun or mpirun would, and binds each to a core as srun does; ends with the first code that is not 0, or at a signal, and
takes all along."""

import os
import signal
import subprocess
import sys

NAMES = {
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def main(kind, count, *command):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes, cores = [], sorted(os.sched_getaffinity(0))
    try:
        for number in range(int(count)):
            if kind == "srun":  # what is started stays where this process is
                os.sched_setaffinity(0, {cores[number % len(cores)]})
            told = dict(zip(NAMES[kind], map(str, (number, count, number)), strict=True))
            processes.append(subprocess.Popen(command, env=os.environ | told))
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
