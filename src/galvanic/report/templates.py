"""The templates, with the words of the report as their filters."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from galvanic.report import study_words, words

FILTERS = ("recipe", "training", "compensation", "percent", "share", "points", "std", "age", "after", "duration", "value", "count")


def template(name: str) -> Template:
    """A template of this folder; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in FILTERS}
    environment.filters |= {name: getattr(study_words, name) for name in study_words.FILTERS}
    return environment.get_template(name)
