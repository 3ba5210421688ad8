"""`python -m benchmarks [NAME …]`: runs the measurements (all, or those named; `gpu` is another) and prints one
table."""

from __future__ import annotations

import sys


def main() -> None:
    from benchmarks import doors, gpu, http, measures, models, scaling

    known = {**measures.ALL, **models.ALL, **http.ALL, **doors.ALL, **scaling.ALL, "gpu": gpu.measure}
    wanted = sys.argv[1:] or list(known)
    if unknown := set(wanted) - set(known):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    rows = []
    for name in wanted:
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
