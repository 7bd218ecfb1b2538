"""A plugin of pytest (`-p record_tests`): each test's outcome as a result of the part that RESULTS_PART names."""

import os

import pytest
import results


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "skipped" or report.failed:
        reason = str(report.longrepr)[-300:] if report.longrepr else ""
        name = report.nodeid.rpartition("/")[2]
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        results.write(os.environ.get("RESULTS_PART", "tests"), name, outcome=outcome, reason=reason)
