"""`torch._dynamo` stays unloaded for eager code, and is the real one when it is needed."""

import subprocess
import sys

from course.registry import ROOT

PROGRAM = """
import inspect
import sys
import torch
from course import lazy_dynamo

lazy_dynamo.install()
param = torch.nn.Parameter(torch.ones(3))
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind([param], lr=0.1)
    for foreach in (False, True):
        optimizer.param_groups[0]["foreach"] = foreach
        param.grad = torch.ones(3)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
torch.optim.lr_scheduler.StepLR(optimizer, 1)
inspect.getmodule(inspect.currentframe())  # asks every module for its __file__
torch.testing.assert_close(param, param)  # imports torch.distributed.tensor
loaded = [name for name in sys.modules if name.startswith("torch._dynamo.")]
assert not loaded, loaded
import torch._dynamo.config
assert type(sys.modules["torch._dynamo"]) is type(sys)
assert torch._dynamo is sys.modules["torch._dynamo"]
doubled = torch.compile(lambda x: x * 2, backend="eager")
assert doubled(torch.ones(2)).tolist() == [2, 2]
print("good")
"""


def test_optimizers_run_without_dynamo_and_compile_gets_the_real_one():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "good", done.stderr
