"""`python -m caseback.show.work FOLDER`: one study in a process of its own, so that neither the page nor the server that
asked for it is needed until it ends.

FOLDER/asked.json says what to do; FOLDER/state.json, replaced whole each time, says how far it is. SIGINT stops the
study where it can be resumed, as Ctrl-C does in a terminal.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from caseback.core import registry
from caseback.core.errors import CasebackError
from caseback.study import Spec, Study, files
from caseback.study.asked import config_of
from caseback.study.resume import is_locked

__all__ = ["main"]

PAUSE = 0.25
"""Seconds between two notes of progress."""


class _State:
    """What state.json holds."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.path = folder / "state.json"
        self.study = study
        self.spec: Spec | None = None
        self.said: dict[str, Any] = {}
        self.written = 0.0

    def say(self, **said: Any) -> None:
        self.said |= said
        self.written = time.monotonic()
        files.write(self.path, json.dumps(self.said).encode())

    def tick(self, stage: str, done: int, total: int) -> None:
        """The progress of the study; the run is named as soon as it is there."""
        if self.spec is not None and "run" not in self.said and (run := self._run(self.spec)):
            self.say(run=run)
        if time.monotonic() - self.written > PAUSE or self.said.get("stage") != stage:
            self.say(stage=stage, done=done, total=total)

    def _run(self, spec: Spec) -> str | None:
        """The run of this spec that is computed now."""
        for run in reversed(self.study.ids()):
            if run.endswith(spec.digest[:4]) and is_locked(self.study.path / "runs" / run / "lock"):
                return run
        return None


def main(folder: Path) -> None:
    """Carry out what was asked, and say how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = json.loads((folder / "asked.json").read_text("utf-8"))
    study = Study(asked["study"])
    state = _State(folder, study)
    try:
        if "resume" in asked:
            state.say(state="running", run=asked["resume"])
            record = study.resume(asked["resume"], progress=state.tick)
        else:
            state.say(state="running", stage="begins")
            method, params = asked["method"], asked["params"]
            config = config_of(method, params)
            spec, have = registry.get("method", method).prepare(config, study, passed=params, progress=state.tick)
            state.spec = spec
            record = study.run(spec, progress=state.tick, force=asked["force"], have=have)
        state.say(state="finished", run=record.id)
    except KeyboardInterrupt:
        state.say(state="stopped")
    except (CasebackError, OSError) as error:
        state.say(state="failed", error=str(error))
    except Exception as error:
        traceback.print_exc()
        state.say(state="failed", error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
