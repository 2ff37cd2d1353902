"""Print a bash/zsh completion script: eval "$(python -m mouselift_jax completion)".

It completes the verbs and their options after `python -m mouselift_jax`, and the configs and
common flags after `python launch.py`. Put the line into ~/.bashrc to keep it.
"""

from __future__ import annotations

import argparse
import sys

SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_mouselift_python() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=" ${{COMP_WORDS[*]}} "
  if [[ "$words" == *" -m mouselift_jax "* ]]; then
    case "$words" in
{cases}      *) COMPREPLY=($(compgen -W "{verbs}" -- "$current")) ;;
    esac
  elif [[ "$words" == *" launch.py "* ]]; then
    local configs="$(ls configs/*.py 2>/dev/null | grep -vE '__init__|common|models')"
    if [[ "$current" == configs/* || "${{COMP_WORDS[COMP_CWORD-1]}}" == "=" ]]; then
      COMPREPLY=($(compgen -W "$configs" -- "$current") $(compgen -f -- "$current"))
    else
      COMPREPLY=($(compgen -W "--config= --workdir= --plan --progress= --debug" -- "$current"))
    fi
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o default -o nospace -F _mouselift_python python python3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from mouselift_jax.cli._verbs import build_parser, verbs

    cases = ""
    for verb in verbs():
        options = sorted(
            o for action in build_parser(verb)._actions for o in action.option_strings if "--" in o
        )
        words = f'COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$current")'
        cases += f'      *" {verb} "*) {words} $(compgen -f -- "$current")) ;;\n'
    sys.stdout.write(SCRIPT.format(cases=cases, verbs=" ".join(verbs())))
    return 0
