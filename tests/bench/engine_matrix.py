"""DeepSpeed against plain torch: every ZeRO stage, number of workers and precision, as a Markdown table.

    python -m tests.bench.engine_matrix [--workers 1 2 4]

The cells are those of tests/integration/test_engines.py: 5 sequences a step, which neither 2, 3 nor 4 workers divide,
gradients accumulated over micro-batches, two parameter groups with different weight decay, 20 steps from the same
initial values, real gloo processes on CPUs. The figures are the largest relative difference of a loss over the 20
steps, and the largest difference of a gradient in step 1 relative to the largest gradient of its parameter.
"""

from __future__ import annotations

import argparse
import sys

from cluster.topology import Topology
from tests.integration.engine_matrix import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MATRIX, STEPS, Case, curves
from tests.integration.gloo import run_ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    references = {
        case.precision: curves(Topology(), [case])[str(case)]
        for case in (Case(precision="fp32"), Case(precision="bf16"))
    }
    print(f"| stage | workers | precision | activations | loss, {STEPS} steps | gradient, step 1 |")
    print("|---:|---:|---|---|---:|---:|")
    outside = 0
    for workers in options.workers:
        found = run_ranks(curves, workers, MATRIX)[0]
        for case in MATRIX:
            assert case.zero is not None
            curve, reference = found[str(case)], references[case.precision]
            loss, gradient = curve.loss_difference(reference), curve.gradient_difference(reference)
            outside += loss > LOSS_TOLERANCE[case.precision] or gradient > GRADIENT_TOLERANCE[case.precision]
            kept = "kept" if case.activation_checkpointing == "off" else "recomputed"
            print(
                f"| {case.zero.stage} | {workers} | {case.precision} | {kept} | {loss:.1e} | {gradient:.1e} |",
                flush=True,
            )
    print(f"\nTolerances of the losses: fp32 {LOSS_TOLERANCE['fp32']:.0e}, bf16 {LOSS_TOLERANCE['bf16']:.0e}.")
    if outside:
        sys.exit(f"{outside} cells are outside of the tolerances.")


if __name__ == "__main__":
    main()
