"""A plugin of pytest (`-p record_tests`): each test's outcome as a result of the part that RESULTS_PART names."""

import os

import pytest
import results


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the process that started the workers records
    if report.when == "call" or report.outcome == "skipped" or report.failed:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        reason = str(said or "")[-300:]
        name = report.nodeid.rpartition("/")[2]
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        results.write(os.environ.get("RESULTS_PART", "tests"), name, outcome=outcome, reason=reason)
