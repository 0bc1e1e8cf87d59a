"""The command line of contrib/fuzz."""

import argparse
from concurrent.futures import ThreadPoolExecutor

from fuzzlib import campaign, record
from support.fuzz.harnesses import HARNESSES, TOKENS


def main() -> int:
    """Run the harnesses that are asked for; return 1 where there are findings."""
    parser = argparse.ArgumentParser(
        prog="contrib/fuzz", description="Fuzz everything that reads bytes from the network."
    )
    parser.add_argument("--seconds", type=int, default=600, help="how long to run each harness (600)")
    parser.add_argument("-j", dest="jobs", type=int, default=1, help="how many to run at once (1)")
    parser.add_argument(
        "--record",
        action="store_true",
        help="instead: record the seeds of tgt and istgt anew, which must be installed",
    )
    parser.add_argument("harnesses", nargs="*", metavar="HARNESS", help=f"of {', '.join(HARNESSES)}; all")
    arguments = parser.parse_args()
    if unknown := set(arguments.harnesses) - HARNESSES.keys():
        parser.error(f"there is no harness {', '.join(sorted(unknown))}")
    if arguments.record:
        record.main()
        return 0
    campaign.write_tokens(TOKENS)
    outcomes = []
    print(campaign.TABLE, flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        names = arguments.harnesses or [*HARNESSES]
        for outcome in pool.map(
            lambda name: campaign.run(name, HARNESSES[name].longest, arguments.seconds), names
        ):
            outcomes.append(outcome)
            print(outcome.row(), flush=True)
    for outcome in outcomes:
        for report in outcome.findings:
            print(f"\n{outcome.harness}: {report}")
    return int(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
