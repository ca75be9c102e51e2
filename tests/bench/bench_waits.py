"""How often the host waits for a GPU, counted on the simulated one: in a training step by loss and term, and in a predicted case.

python -m tests.bench.bench_waits

One JSON line. Counts, not times: the same on every machine.
"""

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

from tests.simulated.stand_ins import simulated_device
from tests.simulated.test_distillation import NEEDS_HEADS, TERMS, WITH_REGIONS
from tests.simulated.test_prediction import CASES
from tests.simulated.test_training import LOSSES
from tests.simulated.work import KINDS, image_of, make_place, predictor_of, small_planes, steps_of, trainer_of, watched

STEPS = 4


def main():
    found = {"bench": "waits of the host for a GPU, counted on a simulated one", "loss": {}, "term": {}, "case": {}}
    with tempfile.TemporaryDirectory() as folder, simulated_device() as device:
        places = {kind: make_place(Path(folder) / kind, kind) for kind in KINDS}

        def a_step(kind, labelled=None, **how):
            trainer = trainer_of(places[kind], "cuda:0", **how)
            with watched(device) as waits:
                steps_of(trainer, n=STEPS, labelled=labelled)
            return sum(waits.values()) / STEPS

        for name, terms in LOSSES.items():
            found["loss"][name] = {kind: a_step(kind, loss=terms) for kind in ("plain", "ignore", "regions")}
        found["loss"]["some samples without labels"] = {"plain": a_step("plain", labelled=(True, False))}
        for kd in TERMS:
            kind = "deep" if kd in NEEDS_HEADS else "plain"
            found["term"][kd] = {"plain": a_step(kind, kd=(kd,))}
            if kd in WITH_REGIONS:
                found["term"][kd]["regions"] = a_step("regions", kd=(kd,))
        for name, (kind, _, spacing, how) in CASES.items():
            image = image_of((30, 40, 40), spacing)
            counted = {}
            for key, more, parts in (
                ("as it is", {}, nullcontext()),
                ("two tiles a batch", {"tiles": 2}, nullcontext()),
                ("handed on plane by plane", {}, small_planes()),
            ):
                predictor = predictor_of(places[kind], "cuda:0", **(how | more))
                with parts, watched(device) as waits:
                    predictor.segment(image)
                counted[key] = sum(waits.values())
            found["case"][name] = counted
        predictor = predictor_of(places["plain"], "cuda:0", tta=True, tiles=2)
        with watched(device) as waits:
            measured = predictor.segment(image_of((45, 72, 72))).measured
        found["large case"] = {"windows": measured.n_windows, "waits": sum(waits.values())}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
