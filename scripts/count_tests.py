# SPDX-License-Identifier: Apache-2.0
"""Sums up Meson's log of a test run as one line: N passed, N failed, N skipped.

usage: count_tests.py FOLDER      where testlog.json is

A doctest program counts as the test cases that it reports, any other test as one. What failed
tests said comes again before that line, where the end of a long log is all that is kept. Exits
with status 1 if a test failed or none ran.
"""
import json
import pathlib
import re
import sys

CASES = re.compile(r"\[doctest\] test cases: +\d+ \| +(\d+) passed \| +(\d+) failed \| +(\d+) skipped")


def count(test):
    """How many cases of one test passed, failed and were skipped."""
    if test["result"] == "SKIP":
        return 0, 0, 1
    cases = CASES.findall(re.sub(r"\x1b\[[\d;]*m", "", test.get("stdout") or ""))
    passed, failed, skipped = (sum(map(int, column)) for column in zip(*cases)) if cases else (0, 0, 0)
    good = test["result"] in ("OK", "EXPECTEDFAIL")
    if good and not cases:
        passed = 1
    if not good and failed == 0:  # crashed, timed out, or no doctest program
        failed = 1
    return passed, failed, skipped


log = next(pathlib.Path(sys.argv[1]).glob("testlog*.json"), None)
tests = [json.loads(line) for line in log.read_text().splitlines()] if log else []
passed, failed, skipped = (sum(column) for column in zip(*map(count, tests))) if tests else (0, 0, 0)
for test in tests:
    if test["result"] not in ("OK", "EXPECTEDFAIL", "SKIP"):
        said = ((test.get("stdout") or "") + (test.get("stderr") or "")).strip().splitlines()
        print(f"--- {test['name']}: {test['result']}", *said[-60:], "---", sep="\n")
    if test["result"] == "SKIP":
        said = (test.get("stdout") or "").strip().splitlines()
        print(f"skipped {test['name']}: {said[-1].removeprefix('skipped: ') if said else 'no reason given'}")
print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
sys.exit(failed > 0 or passed == 0)
