"""One slot: takes a ready unit, runs the program over its records, hands the result on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from officegrid.core.errors import ForbiddenError, OfficeGridError, ProgramError, UnavailableError
from officegrid.wire.data import BlockSlice
from officegrid.wire.work import QuarantinedRecord, Unit
from officegrid.worker.bundles import BundleCache
from officegrid.worker.holding import Holding
from officegrid.worker.link import GaveUp, Link, in_one_line
from officegrid.worker.log import get_logger
from officegrid.worker.programs import Runner, Stopped, make_runner
from officegrid.worker.reference import ReferenceData
from officegrid.worker.unit_input import BlockCache, UnitInput
from officegrid.worker.unit_output import UnitOutput

TROUBLE_PAUSE_S = 30.0  # before asking for more work on a machine that has a problem
log = get_logger("slot")


class Finished:
    """What is to be committed for a unit."""

    def __init__(
        self, holding: Holding, output: UnitOutput, compute_s: float, bundle: str | None
    ) -> None:
        self.holding = holding
        self.compute_s = compute_s
        self.bundle = bundle  # the one that ran, not the one that was asked for
        self._output = output

    def wait(self) -> tuple[list[BlockSlice], list[QuarantinedRecord]]:
        """Until everything is uploaded."""
        return self._output.finish()


class Slot:
    """Runs one unit at a time; keeps the program warm between units of the same job."""

    def __init__(
        self, number: int, link: Link, bundles: BundleCache, data: ReferenceData,
        blocks: BlockCache, scratch: Path,
    ) -> None:  # fmt: skip
        self._number = number
        self._link = link
        self._bundles = bundles
        self._data = data
        self._blocks = blocks
        self._scratch = scratch / f"slot-{number}"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._runner: Runner | None = None
        self._runner_key = ""
        self._runner_bundle: str | None = None

    def run(self, holding: Holding) -> Finished | None:
        """Run the unit. None when it was lost, stopped, or given back with its reason."""
        unit = holding.unit
        output = UnitOutput(self._link, unit.lease_id)
        unit_input = holding.input or UnitInput(unit, self._link, self._blocks)
        try:
            runner = self._runner_for(holding)
            holding.attach(runner, unit_input, output)
            compute_s = self._process(holding, runner, unit_input, output)
            holding.detach()
            if holding.lost:  # the runner was stopped with it: it must not serve another unit
                raise GaveUp
            return Finished(holding, output, compute_s, self._runner_bundle)
        except (Stopped, GaveUp):
            self._drop_runner()
        except ForbiddenError as error:  # the coordinator took the lease back in the meantime
            log.info("unit_lost", lease=unit.lease_id, what=error.what)
        except ProgramError as error:
            log.error("program_failed", job=unit.job_id, what=error.what, why=error.why)
            self._drop_runner()
            self._tell(partial(self._link.fail, unit.lease_id, error))
        except OfficeGridError as error:
            log.error("unit_failed", job=unit.job_id, what=error.what, why=error.why)
            self._drop_runner()
            local = isinstance(error, UnavailableError)  # like a full disk here
            rest_s = TROUBLE_PAUSE_S if local else 0.0
            told = partial(self._link.release, [unit.lease_id], in_one_line(error))
            self._tell(partial(told, fault=not local, rest_s=rest_s))
            if local:
                self._link.rest(rest_s)
        holding.detach()
        output.close()
        unit_input.close()
        return None

    def _process(
        self, holding: Holding, runner: Runner, unit_input: UnitInput, output: UnitOutput
    ) -> float:
        """Seconds the program itself took: waiting for input or upload is not its fault."""
        compute_s = 0.0
        for chunk in unit_input:
            started = time.monotonic()
            result = runner.process(chunk)
            compute_s += time.monotonic() - started
            holding.records_done += chunk.records
            output.add(result)
        return compute_s

    def _runner_for(self, holding: Holding) -> Runner:
        unit = holding.unit
        key = "\n".join(
            (
                unit.job_id,
                unit.bundle or "",
                *(f"{name}={one.model_dump_json()}" for name, one in sorted(unit.data.items())),
                unit.program.model_dump_json(),
                unit.layout.model_dump_json(),
                unit.output.model_dump_json(),
                unit.limits.model_dump_json(),
            )
        )
        if self._runner is not None and key == self._runner_key and self._is_untouched(unit):
            return self._runner
        self._drop_runner()
        folder, python = self._bundles.ready(
            self._link, self._number, unit.bundle, lambda: not holding.lost
        )
        places = self._data.ready(self._link, self._number, unit.data, lambda: not holding.lost)
        facts: Mapping[str, str] = {
            "OFFICEGRID_JOB": unit.job_id,
            "OFFICEGRID_JOB_NAME": unit.job_name,
            **places,
        }
        self._runner = make_runner(
            unit.program,
            unit.layout,
            unit.output,
            unit.limits,
            folder,
            self._scratch,
            python,
            facts,
        )
        self._runner_key = key
        self._runner_bundle = None if unit.bundle is None else folder.name
        return self._runner

    def _is_untouched(self, unit: Unit) -> bool:
        """Did the program of the last unit leave the code and data of this one alone?"""
        return self._bundles.is_untouched(self._number, unit.bundle) and self._data.is_untouched(
            self._number, unit.data
        )

    def _drop_runner(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def close(self) -> None:
        self._drop_runner()
        self._bundles.release(self._number)
        self._data.release(self._number)

    def _tell(self, request: Callable[[], None]) -> None:
        try:
            request()
        except OfficeGridError as error:
            log.warning("not_told", what=error.what)
