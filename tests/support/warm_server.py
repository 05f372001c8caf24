"""The process that ranks are forked from, with transformers in it too: nearly every run of these tests has a judge.

Importing what that needs takes longer than the run. Not for ranks on a GPU: some import may speak to the driver, after
which a fork cannot. Users' processes, and so all that tests start as users do, have the server without it.
"""

import sys

import transformers.models.gpt2.modeling_gpt2  # noqa: F401

from gpt_parallel.engine.process.fork_server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
