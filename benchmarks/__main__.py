"""Run measurements and print one table: `python -m benchmarks [NAME …]`.

Without names, all measurements run except `loading`, which requires 6 GB of memory. `gpu` requires a CUDA device;
`python -m benchmarks.gpu` has more options for it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the measurements that the command line names. Exit with a message for an unknown name."""
    from benchmarks import doors, gpu, http, loading, measures, models, real, scaling, turns

    modules = (measures, models, http, doors, scaling, real, turns)
    known = {name: measure for module in modules for name, measure in module.ALL.items()} | {"gpu": gpu.measure}
    names = sys.argv[1:] or list(known)
    known["loading"] = loading.loading
    if unknown := set(names) - set(known):
        sys.exit(f"unknown measurements: {', '.join(unknown)}; the measurements are {', '.join(known)}")
    rows = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += known[name]()
    print("| what | measured | promised | kept |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.measured} | {row.promised} "
            f"| {'–' if row.kept is None else 'yes' if row.kept else 'no'} |"
        )


if __name__ == "__main__":
    main()
