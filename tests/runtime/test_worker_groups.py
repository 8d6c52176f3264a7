"""What worker groups lean on inside Ray Train: where a new Ray changes it, this fails, and the bound on Ray must stay.

The chaos test shows the behaviour; this names the cause.
"""

import inspect

from ray.train import FailureConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from datadream.runtime.worker_groups import IndependentWorkers


def test_a_backend_may_ask_for_workers_that_are_replaced_alone():
    assert Backend.has_replica_groups is False
    assert IndependentWorkers().backend_cls.has_replica_groups is True
    assert "has_replica_groups" in inspect.getsource(worker_group)


def test_a_callback_hears_of_the_controller_from_inside_it():
    assert list(inspect.signature(ControllerCallback.after_controller_start).parameters) == [
        "self",
        "train_run_context",
    ]


def test_workers_may_be_pinned_to_a_node():
    assert ScalingConfig(num_workers=1, label_selector={"ray.io/node-id": "x"}).label_selector


def test_failures_are_told_apart():
    assert issubclass(ControllerError, TrainingFailedError)
    assert issubclass(WorkerHealthCheckFailedError, Exception)
    assert issubclass(WorkerHealthCheckTimeoutError, Exception)
    assert FailureConfig(max_failures=-1, controller_failure_limit=0, max_preemption_failures=0).max_failures == -1


def test_the_pace_of_health_checks_is_a_variable():
    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR == "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
