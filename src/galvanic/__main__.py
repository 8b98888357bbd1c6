"""``python -m galvanic`` is ``galvanic``."""

from galvanic.cli import app

app(prog_name="galvanic")
