import os
import random
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from galvanic.studies.user import check_fit, load_builder

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(x)

def make():
    return nn.Sequential(nn.Linear(3, 2))

net = Net()
number = 7
nothing = None

def needs(size):
    return nn.Linear(size, 2)

def none():
    return None

def wrong_type():
    return 1 + "a"

def wrong_key():
    return {}["key"]

def wrong_attribute():
    return nn.Linaer(3, 2)
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Files of the user stay known to the process, as they would to `python FILE.py`."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    sys.modules.pop("galvanic_test_neighbour", None)


def file(folder: Path, text: str = NET, name: str = "my.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def refusal(kind: type[Exception], spec: str) -> str:
    """The one line with which a network is refused, when it is loaded or when it is made."""
    with pytest.raises(kind) as caught:
        load_builder(spec)()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("name", ["Net", "make", "net"])
def test_a_class_a_function_and_a_module_are_taken(tmp_path, name):
    build = load_builder(f"{file(tmp_path)}:{name}")
    one, two = build(), build()
    assert isinstance(one, nn.Module)
    assert one is not two
    assert one(torch.ones(5, 3)).shape == (5, 2)


def test_a_class_is_drawn_from_the_global_stream_so_that_seeds_differ(tmp_path):
    build = load_builder(f"{file(tmp_path)}:Net")

    def weights(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return build().fc.weight.flatten().tolist()

    assert weights(0) == weights(0) != weights(1)


def test_a_module_has_the_same_weights_whatever_was_drawn_before(tmp_path):
    """Else a run that is resumed in a new process would begin from other ones."""
    spec = f"{file(tmp_path)}:net"
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(load_builder(spec)().fc.weight)
    assert torch.equal(*found)


def test_a_copy_of_a_module_is_changed_not_the_module(tmp_path):
    build = load_builder(f"{file(tmp_path)}:net")
    with torch.no_grad():
        build().fc.weight.zero_()
    assert build().fc.weight.abs().sum() > 0


def test_reading_the_file_does_not_move_the_global_stream(tmp_path):
    before = torch.get_rng_state()
    load_builder(f"{file(tmp_path)}:net")
    assert torch.equal(before, torch.get_rng_state())


def test_what_python_does_with_a_file_works_dataclasses_and_neighbours_too(tmp_path):
    """As `python FILE.py` would: the module is known by its name, and its folder is searched."""
    file(tmp_path, "WIDTH = 5\n", name="galvanic_test_neighbour.py")
    path = file(
        tmp_path,
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from torch import nn
        from galvanic_test_neighbour import WIDTH

        @dataclass
        class Shape:
            width: int = WIDTH

        def make():
            return nn.Linear(3, Shape().width)
        """,
    )
    assert load_builder(f"{path}:make")().out_features == 5


def test_a_file_named_as_a_module_that_is_in_use_hides_it_from_no_one(tmp_path):
    path = file(tmp_path, NET, name="random.py")
    load_builder(f"{path}:Net")
    import random as again

    assert again is random
    assert isinstance(load_builder(f"{path}:Net")(), nn.Module)


def test_the_main_guard_is_not_run(tmp_path):
    path = file(tmp_path, NET + "\nif __name__ == '__main__':\n    raise SystemExit(3)\n")
    assert isinstance(load_builder(f"{path}:Net")(), nn.Module)


@pytest.mark.parametrize("folder", ["with space", "with:colon", "[bold]", 'quo"te', "new\nline"])
def test_any_path_is_taken(tmp_path, folder):
    (tmp_path / folder).mkdir()
    assert load_builder(f"{file(tmp_path / folder)}:Net")


# ------------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("spec", ["resnet", "my.py", "my.txt:Net", ":Net", "", "my:Net"])
def test_what_is_no_file_and_name_is_refused_with_the_form(spec):
    assert refusal(ValueError, spec).startswith("a network of your own is given as FILE.py:NAME, not ")


def test_a_missing_file_is_named(tmp_path):
    assert refusal(FileNotFoundError, f"{tmp_path}/nosuch.py:Net").startswith(f"no file {tmp_path}/nosuch.py;")
    (tmp_path / "folder.py").mkdir()
    assert "no file" in refusal(FileNotFoundError, f"{tmp_path}/folder.py:Net")


def test_a_missing_name_is_refused_with_the_nearest(tmp_path):
    path = file(tmp_path)
    assert refusal(ValueError, f"{path}:Nett") == f"{path} has no network 'Nett'; did you mean 'Net'?"
    assert refusal(ValueError, f"{path}:xyzzy") == f"{path} has no network 'xyzzy'"
    assert refusal(ValueError, f"{path}:") == f"{path} has no network ''"


@pytest.mark.parametrize("name", ["number", "nothing", "torch"])
def test_what_is_neither_callable_nor_a_module_is_refused(tmp_path, name):
    assert f"has no network '{name}'" in refusal(ValueError, f"{file(tmp_path)}:{name}")


def test_what_needs_arguments_is_refused_with_what_it_needs(tmp_path):
    message = refusal(ValueError, f"{file(tmp_path)}:needs")
    assert "needs fails when it is called without arguments: TypeError: " in message
    assert "missing 1 required positional argument: 'size'" in message


def test_what_makes_no_module_is_refused(tmp_path):
    assert refusal(ValueError, f"{file(tmp_path)}:none").endswith("my.py:none makes a NoneType, not a torch.nn.Module")


@pytest.mark.parametrize(
    ("name", "said"), [("wrong_type", "TypeError: unsupported"), ("wrong_key", "KeyError: 'key'"), ("wrong_attribute", "Linaer")]
)
def test_an_error_inside_a_constructor_is_one_line_with_its_place(tmp_path, name, said):
    path = file(tmp_path)
    message = refusal(ValueError, f"{path}:{name}")
    assert said in message
    line = next(k for k, text in enumerate(NET.splitlines(), 1) if f"def {name}" in text) + 1
    assert f"({path}, line {line})" in message


ERRORS = {
    "syntax": ("x = (1,\ny = 2\n", "SyntaxError", 1),
    "import": ("import torch\nimport galvanic_nosuch\n", "ModuleNotFoundError: No module named 'galvanic_nosuch'", 2),
    "division": ("def f():\n    return 1 / 0\n\nx = f()\n", "ZeroDivisionError: division by zero", 2),
    "long message": ("raise ValueError('a\\n\\nb')\n", "ValueError: a b", 1),
    "exit": ("import sys\nx = 1\nsys.exit(0)\n", "SystemExit: 0", 3),
    "not text": ("x = '\ud800'\n", "", None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_inside_the_file_is_one_line_with_its_place(tmp_path, name):
    text, said, line = ERRORS[name]
    path = tmp_path / "my.py"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refusal(ValueError, f"{path}:Net")
    assert message.startswith(f"{path} fails when it is read: ")
    assert said in message
    if line is not None:
        assert f"line {line})" in message


def test_ctrl_c_inside_the_file_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        load_builder(f"{file(tmp_path, 'raise KeyboardInterrupt')}:Net")


# ------------------------------------------------------------------------------------------------------------------- check_fit

X = torch.randn(2, 3)


def fit_refusal(model: nn.Module, x: torch.Tensor = X, classes: int = 2) -> str:
    with pytest.raises(ValueError, match="NAME") as caught:
        check_fit(model, x, classes, "NAME")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Gives(nn.Module):
    def __init__(self, y):
        super().__init__()
        self.y, self.scale = y, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.y


def test_a_network_that_fits_is_taken_and_left_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    check_fit(model, X, 2, "NAME")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.training


def test_inputs_of_another_shape_are_refused_with_the_reason():
    message = fit_refusal(nn.Linear(5, 2))
    assert message.startswith("NAME does not take inputs of shape (2, 3): ")
    assert "shapes cannot be multiplied" in message


WRONG = {
    "too few classes": (nn.Linear(3, 1), "gives (2, 1) for 2 inputs; scores of shape (2, 2) are needed"),
    "too many classes": (nn.Linear(3, 7), "gives (2, 7)"),
    "one dimension too many": (nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1))), "gives (2, 2, 1)"),
    "a tuple": (Gives((torch.ones(2, 2), None)), "gives tuple"),
    "nothing": (Gives(None), "gives NoneType"),
    "not a number": (Gives(torch.tensor([[1.0, float("nan")], [0, 0]])), "gives values that are not finite"),
    "integers": (Gives(torch.ones(2, 2, dtype=torch.int64)), "gives torch.int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_scores_of_another_kind_are_refused(name):
    model, said = WRONG[name]
    assert said in fit_refusal(model)


def test_a_network_that_cannot_be_copied_is_refused_with_the_reason():
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()
    assert fit_refusal(model).startswith("NAME cannot be copied: ")


def test_a_network_of_unknown_shapes_is_refused():
    assert "LazyLinear" in fit_refusal(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))


def test_a_network_with_nothing_to_put_on_a_chip_or_to_train_is_refused():
    assert "nothing to train" in fit_refusal(nn.Linear(3, 2).requires_grad_(False))


def test_the_folder_of_the_file_is_the_only_trace(tmp_path):
    before = set(os.listdir(tmp_path))
    load_builder(f"{file(tmp_path)}:Net")
    assert set(os.listdir(tmp_path)) - before <= {"my.py", "__pycache__"}
