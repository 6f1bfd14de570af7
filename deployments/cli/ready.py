"""The report at the end of a start: where it listens, what failed, what to type next."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.cli import output
from deployments.cli.options import KEY_VARIABLE
from deployments.cli.place import Place
from deployments.head.state import ClusterState, Phase

_PHASES = {Phase.READY: "ready", Phase.DEGRADED: "ready in part", Phase.STARTING: "ready in part"}


@dataclass(frozen=True, slots=True)
class Report:
    """A cluster that serves."""

    state: ClusterState
    place: Place
    seconds: float | None
    """What the start took; None for a cluster that ran already."""
    keys_required: bool

    def show(self, *, as_json: bool) -> None:
        """Print it on stdout."""
        if as_json:
            output.print_json(self._json())
            return
        state = self.state
        phase = _PHASES.get(state.phase, state.phase.value)
        head = f"Already running and {phase}"
        if self.seconds is not None:
            head = f"{phase.capitalize()} in {output.duration(self.seconds)}"
        output.print_line((head, "bold green" if state.phase is Phase.READY else "bold yellow"), f"  {state.url}/v1")
        for name, model in state.models.items():
            if model.phase is not Phase.READY:
                output.print_line("  ", ("✗ ", "red"), f"{name}  {model.phase.value}")
                continue
            after = f" after {output.duration(model.ready_after_s)}" if model.ready_after_s is not None else ""
            output.print_line("  ", ("✓ ", "green"), f"{name}  ready{after}")
        self._show_commands()
        self._show_clients()

    def _show_commands(self) -> None:
        command = self.place.command
        steps = [
            (command('chat "What is the name of the capital of France?"'), "ask it something"),
            (command("trace --last"), "the trace of the newest answer"),
            (command("status"), "models, load, memory"),
            (command("down"), "stop it and every process of it"),
        ]
        if self.keys_required:
            steps.insert(0, (command("keys add NAME"), f"make a key; then export {KEY_VARIABLE}=..."))
        width = max(len(typed) for typed, _ in steps)
        output.print_line()
        output.print_line(("Next", "bold"))
        for typed, purpose in steps:
            output.print_line("  ", (typed.ljust(width), "cyan"), f"  {purpose}")

    def _show_clients(self) -> None:
        base = f"{self.state.url}/v1"
        key = f"${KEY_VARIABLE}" if self.keys_required else "none"
        asks = f" -H 'authorization: Bearer '{key}" if self.keys_required else ""
        body = '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'
        curl = f"curl {base}/chat/completions{asks} -H 'content-type: application/json' -d '{body}'"
        output.print_line()
        output.print_line(("With any OpenAI client", "bold"))
        output.print_line("  ", (f"export OPENAI_BASE_URL={base} OPENAI_API_KEY={key}", "cyan"))
        output.print_line("  ", (curl, "cyan"))

    def _json(self) -> dict[str, object]:
        state = self.state
        return {
            "url": state.url,
            "base_url": f"{state.url}/v1",
            "phase": state.phase.value,
            "pid": state.pid,
            "state_dir": str(self.place.state_dir),
            "started": self.seconds is not None,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "keys_required": self.keys_required,
            "models": {
                name: {"phase": model.phase.value, "ready_after_s": model.ready_after_s, "message": model.message}
                for name, model in state.models.items()
            },
        }
