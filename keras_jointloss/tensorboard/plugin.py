"""The "Joint loss" tab of TensorBoard.

TensorBoard loads this module when it starts: it imports neither Keras nor Plotly.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from tensorboard.plugins import base_plugin

from keras_jointloss._core.validation import invalid, validate_choice
from keras_jointloss.tensorboard.writer import PLUGIN

#: A training that has logged nothing for so many seconds is not running any more.
_SILENCE = 600
#: The number of characters of an error, which may list names.
_LONGEST_ERROR = 2_000
#: The files of the page by their type.
_PAGES = {
    "application/javascript": ("index.js", "controls.js", "dom.js", "state.js", "table.js"),
    "text/css": ("page.css",),
}
_INSTALL = "pip install 'keras-jointloss[dashboard]'"


class NotFoundError(ValueError):
    """A request names a run that does not exist."""


class JointLossPlugin(base_plugin.TBPlugin):
    """Answers the requests of the page with figures, tables and text.

    Args:
        context: What TensorBoard hands to each plugin.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext):
        from keras_jointloss.tensorboard.provider import Logs

        root = os.path.basename(os.path.normpath(context.logdir or "")) or "run"
        samples = (context.sampling_hints or {}).get("scalars")
        self._logs = Logs(context.data_provider, samples, root)

    def get_plugin_apps(self) -> dict[str, Callable]:
        """Returns what answers each address. None of them reads a file that a request names."""
        return {
            **{f"/{x}": _file(kind, _page, x) for kind, names in _PAGES.items() for x in names},
            "/plotly.min.js": _file("application/javascript", _plotly),
            "/runs": self._app(self._runs),
            "/figure": self._app(self._figure),
            "/table": self._app(self._table),
            "/csv": self._app(self._csv, "text/csv"),
        }

    def is_active(self) -> bool:
        """Returns `False`: TensorBoard shows the tab once there is data of the plugin."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Returns the script of the page and the name of the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Joint loss")

    def _app(self, answer: Callable, content_type: str = "application/json") -> Callable:
        """Returns an application that answers invalid requests with a sentence."""
        from tensorboard import plugin_util
        from tensorboard.backend import http_util
        from werkzeug import wrappers

        @wrappers.Request.application
        def application(request):
            context = plugin_util.context(request.environ)
            experiment = plugin_util.experiment_id(request.environ)
            try:
                runs = self._logs.runs(context, experiment)
                content = answer(request.args, runs)
            except (ValueError, ImportError) as error:
                code = 404 if isinstance(error, NotFoundError) else 400
                body = json.dumps({"error": str(error)[:_LONGEST_ERROR]})
                return http_util.Respond(request, body, "application/json", code=code)
            return http_util.Respond(request, content, content_type)

        return application

    def _runs(self, arguments: Mapping[str, Any], runs: list) -> str:
        from keras_jointloss.tensorboard.runs import SPLITS, find_kinds, find_terms

        tags = {f"{split}/{tag}" for run in runs for split in SPLITS for tag in run.split(split)}
        return json.dumps(
            {
                "runs": [{"name": run.name, "kinds": find_kinds(run)} for run in runs],
                "terms": find_terms(runs),
                "values": sorted(tags),
                "plotly": importlib.util.find_spec("plotly") is not None,
                "install": _INSTALL,
            }
        )

    def _figure(self, arguments: Any, runs: list) -> str:
        from keras_jointloss.tensorboard.figures import NothingToShowError
        from keras_jointloss.tensorboard.figures.style import THEMES, marks
        from keras_jointloss.tensorboard.runs import find_terms

        shown = _select(arguments, runs)
        theme = validate_choice(arguments.get("theme", "light"), "theme", (*THEMES,))
        colors = {name: mark.color for name, mark in marks(find_terms(runs), theme).items()}
        try:
            figure = _draw(arguments, shown, runs).to_json()
        except NothingToShowError as error:
            figure = json.dumps({"message": str(error)})
        notes = json.dumps(
            [*self._general_notes(runs), *(x for r in shown for x in self._notes(r))]
        )
        return f'{{"figure": {figure}, "colors": {json.dumps(colors)}, "notes": {notes}}}'

    def _table(self, arguments: Any, runs: list) -> str:
        from keras_jointloss.tensorboard.runs import find_terms
        from keras_jointloss.tensorboard.table import latest

        terms = arguments.getlist("term") or find_terms(runs)
        return json.dumps({"rows": latest(_select(arguments, runs), terms)}, allow_nan=False)

    def _csv(self, arguments: Any, runs: list) -> str:
        from keras_jointloss.tensorboard.runs import SPLITS
        from keras_jointloss.tensorboard.table import to_csv

        shown = _select(arguments, runs)
        _draw(arguments, shown, runs, events=False)
        # What the figure has used.
        return to_csv(
            (run, split, tag, series)
            for run in shown
            for split in SPLITS
            for tag, series in getattr(run.split(split), "used", {}).items()
        )

    def _general_notes(self, runs: list) -> list[str]:
        """Returns sentences about what a reader may miss in the list of runs."""
        left_out = self._logs.left_out_runs
        if not left_out:
            return []
        return [f"{left_out:,} runs are left out: start TensorBoard on a folder of fewer runs."]

    def _notes(self, run: Any) -> list[str]:
        """Returns sentences about what a reader may miss in a run."""
        notes = []
        parts = {split: run.split(split) for split in ("train", "validation") if run.split(split)}
        left_out = sum(tags.left_out for tags in parts.values())
        if left_out:
            notes.append(f"{run.name}: {left_out:,} tags, too many or too long, are left out.")
        if not self._logs.is_complete(run):
            more = "Start TensorBoard with --samples_per_plugin scalars=0 for more points, or draw"
            notes.append(
                f"{run.name}: points are left out, a line has {self._logs.limit:,} at most. "
                f"{'Draw' if self._logs.keeps_more else more} all of them with kj.plot(log_dir)."
            )
        ends = {split: tags.last_point() for split, tags in parts.items()}
        if {"train", "validation"} == set(ends) and ends["train"][0] < ends["validation"][0]:
            notes.append(
                f"{run.name}: the values of training end at step {ends['train'][0]}, before those "
                f"of validation at step {ends['validation'][0]}. The event file may be damaged or "
                "cut off."
            )
        step, wall_time = max(ends.values())
        if run.end is not None and step < run.end and time.time() - wall_time > _SILENCE:
            ago = (time.time() - wall_time) / 60
            notes.append(
                f"{run.name}: the latest value, of step {step} of {run.end}, is {ago:.0f} minutes "
                "old. The training has stopped, or its event file is damaged or cut off."
            )
        return notes


def _select(arguments: Any, runs: list) -> list:
    """Returns the runs that a request names, or all; raises `NotFoundError` without one."""
    names = arguments.getlist("run")
    unknown = set(names) - {run.name for run in runs}
    if unknown:
        raise NotFoundError(f"There is no run {sorted(unknown)[0]!r}.")
    if not runs:
        raise NotFoundError("There is no run yet.")
    return [run for run in runs if not names or run.name in names]


def _draw(arguments: Any, shown: list, runs: list, events: bool = True) -> Any:
    """Returns the figure that a request describes."""
    if importlib.util.find_spec("plotly") is None:
        raise ImportError(f"The figures need Plotly. Install it with: {_INSTALL}")
    from keras_jointloss.tensorboard.figures import View, draw
    from keras_jointloss.tensorboard.runs import SPLITS, find_terms

    view = View(
        terms=arguments.getlist("term") or None,
        compare=arguments.get("compare", "rows"),
        ranges=arguments.get("ranges", "run"),
        events=events and arguments.get("events") != "false",
        x=arguments.get("x", "step"),
        smoothing=_number(arguments, "smoothing", 0.0),
        share=arguments.get("share") == "true",
        splits=arguments.getlist("split") or SPLITS,
        scale=arguments.get("scale") or None,
        theme=arguments.get("theme", "light"),
        a=arguments.get("a") or None,
        b=arguments.get("b") or None,
        palette=find_terms(runs),
        columns=_number(arguments, "columns", 3),
    )
    return draw(arguments.get("kind", "terms"), shown, view)


def _number(arguments: Any, name: str, default: Any) -> Any:
    """Returns a number of a request of the same type as the default one."""
    text = arguments.get(name, default)
    try:
        return type(default)(text)
    except ValueError:
        raise invalid(name, "a number", text) from None


def _page(name: str) -> bytes:
    return (resources.files("keras_jointloss.tensorboard") / "page" / name).read_bytes()


def _plotly() -> bytes | None:
    """Returns the script that the package Plotly ships, if it is installed."""
    if importlib.util.find_spec("plotly") is None:
        return None
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()


def _file(content_type: str, read: Callable[..., bytes | None], *names: str) -> Callable:
    """Returns an application that answers with a file of an installed package."""
    from tensorboard.backend import http_util
    from werkzeug import wrappers

    @wrappers.Request.application
    def application(request):
        content = read(*names)
        if content is None:
            message = f"The figures need Plotly. Install it with: {_INSTALL}"
            return http_util.Respond(request, message, "text/plain", code=404)
        return http_util.Respond(request, content, content_type)

    return application
