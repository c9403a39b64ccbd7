# SPDX-License-Identifier: MIT
# bash completion for softkvm(1)

_softkvm()
{
	local cur=${COMP_WORDS[COMP_CWORD]} i word

	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case $word in
		doctor)
			return
			;;
		-h | --help | -V | --version | --print-capabilities)
			return
			;;
		run | --)
			;;
		-*)
			;;
		*)
			# From the program on: its own completion.
			if declare -F _command_offset >/dev/null; then
				_command_offset "$i"
			else
				compopt -o default
			fi
			return
			;;
		esac
	done
	if [[ $cur == -* && $word != -- && $word != run ]]; then
		mapfile -t COMPREPLY < <(compgen -W '--prefer-hardware --verbose
			--print-capabilities --help --version --' -- "$cur")
		return
	fi
	mapfile -t COMPREPLY < <(compgen -c -- "$cur")
	[[ $word == -- || $word == run ]] ||
		mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W 'doctor run' -- "$cur")
	compopt -o filenames
}

complete -F _softkvm softkvm
