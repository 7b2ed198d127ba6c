"""OPPU with Prompt tuning in place of LoRA, for the rows of that name; see `jobs.kinds`."""

from __future__ import annotations

import sys

from jobs.cli import stage_main
from jobs.kinds import kind_stage

STAGE = kind_stage("prompt_tuning", "own parameters, prompt tuning")

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
