"""What a worker computes on."""

import pytest
import torch

from datadream.runtime.device import is_out_of_memory, shortage, upload, worker_device
from datadream.runtime.failures import Kind, kind_of


def test_a_gpu_that_torch_cannot_use_is_a_hosts_fault(monkeypatch):
    assert worker_device(use_gpu=False).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"Install a driver and a torch that fit, or use cluster.device=cpu"
    ) as raised:
        worker_device(use_gpu=True)
    assert kind_of(raised.value) is Kind.HOST


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_errors_of_full_memory(error, is_memory):
    assert is_out_of_memory(error) is is_memory


def test_a_tensor_stays_on_the_cpu():
    assert upload(torch.ones(2), torch.device("cpu")).tolist() == [1, 1]


def test_the_shortage_is_told_as_torch_words_it():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.68 GiB of which 0 are free."
    )
    assert shortage(error) == " It asked for 2.50 GiB more, of 23.68 GiB that the GPU has."
    assert shortage(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")) == ""
