# SPDX-License-Identifier: MIT
# bash completion for softkvm(1)

# Behind "stat" or "trace", which is word $2.
_softkvm_command()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} next=${COMP_WORDS[$2 + 1]}

	if [[ $1 == trace && $COMP_CWORD == $(($2 + 1)) ]]; then
		mapfile -t COMPREPLY < <(compgen -W 'record decode --help' -- "$cur")
	elif [[ $1 == trace && $next == decode && $prev == = ]]; then
		mapfile -t COMPREPLY < <(compgen -W 'vmx svm userspace riscv ppc-book3s' -- "$cur")
	elif [[ $1 == trace && $next == decode && $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W '--isa= --help' -- "$cur")
		compopt -o nospace
	elif [[ $1 == trace && $prev == -e ]]; then
		mapfile -t COMPREPLY < <(compgen -W 'all exit io cpu event mmu ring' -- "$cur")
	elif [[ ($1 == trace && $next == decode) || $prev == -o ]]; then
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		compopt -o filenames
	elif [[ $prev == -p ]]; then
		mapfile -t COMPREPLY < <(cd /proc && compgen -G '[1-9]*' | grep "^$cur")
	elif [[ $prev == -[in] ]]; then
		COMPREPLY=()
	elif [[ $cur == -* ]]; then
		if [[ $1 == stat ]]; then
			mapfile -t COMPREPLY < <(compgen -W '-1 -i -n -p --help --' -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -W '-e -o -b -h --' -- "$cur")
		fi
	else
		mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		compopt -o filenames
	fi
}

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
		stat | trace)
			_softkvm_command "$word" "$i"
			return
			;;
		check)
			mapfile -t COMPREPLY < <(compgen -W 'pagemap page_idle hugepages sev --help' -- "$cur")
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
		mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W 'check doctor run stat trace' -- "$cur")
	compopt -o filenames
}

complete -F _softkvm softkvm
