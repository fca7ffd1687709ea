"""Shell completion, made of what the argument parser knows."""

from __future__ import annotations

import argparse
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
_FILES: Final = ("FILE", "PATH")  # metavars of flags that take a file

_BASH: Final = """\
_meshproxy() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    case $previous in
        {files}) COMPREPLY=($(compgen -f -- "$current")); return ;;
{values}
    esac
    case ${{COMP_WORDS[1]}} in
{commands}
        *) words="{names}" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o filenames -F _meshproxy meshproxy
"""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell has to evaluate: `eval "$(meshproxy completion bash)"`, or `meshproxy completion fish | source`."""
    commands = _commands(parser)
    if shell == "fish":
        return _fish(commands)
    script = _bash(commands)
    return "autoload -U +X bashcompinit && bashcompinit\n" + script if shell == "zsh" else script


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[argparse.Action]]]:
    """Command → its help, and its flags that the help shows."""
    found: dict[str, tuple[str, list[argparse.Action]]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                shown = [one for one in command._actions if one.help != argparse.SUPPRESS]
                found[name] = (texts.get(name, ""), shown)
    return found


def _bash(commands: dict[str, tuple[str, list[argparse.Action]]]) -> str:
    actions = [action for _, flags in commands.values() for action in flags]
    files = {flag for action in actions if action.metavar in _FILES for flag in action.option_strings}
    values = {
        "|".join(action.option_strings): " ".join(map(str, action.choices))
        for action in actions
        if action.choices and action.option_strings
    }
    return _BASH.format(
        files="|".join(sorted(files)),
        values="\n".join(
            f'        {flags}) COMPREPLY=($(compgen -W "{words}" -- "$current")); return ;;'
            for flags, words in values.items()
        ),
        commands="\n".join(
            f'        {name}) words="{" ".join(_words(flags))}" ;;' for name, (_, flags) in commands.items()
        ),
        names=" ".join(commands),
    )


def _words(actions: list[argparse.Action]) -> list[str]:
    """Flags, and the choices of what is no flag."""
    words: list[str] = []
    for action in actions:
        words += action.option_strings or [str(choice) for choice in action.choices or ()]
    return words


def _fish(commands: dict[str, tuple[str, list[argparse.Action]]]) -> str:
    lines = ["complete -c meshproxy -f"]
    for name, (text, actions) in commands.items():
        lines.append(f"complete -c meshproxy -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        for action in actions:
            lines += _fish_flag(f"complete -c meshproxy -n '__fish_seen_subcommand_from {name}'", action)
    return "\n".join(lines) + "\n"


def _fish_flag(start: str, action: argparse.Action) -> list[str]:
    choices = " ".join(map(str, action.choices or ()))
    if not action.option_strings:
        return [f"{start} -a {_quoted(choices)}"] if choices else []
    names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in action.option_strings)
    takes = "" if action.nargs == 0 else " -r -F" if action.metavar in _FILES else " -x"
    given = f" -a {_quoted(choices)}" if choices else ""
    return [f"{start} {names}{takes}{given} -d {_quoted(action.help or '')}"]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
