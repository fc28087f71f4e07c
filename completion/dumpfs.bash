# bash completion for dumpfs(1) and mount.dumpfs(8)
#
# Needs bash 4.4 and nothing else. Words come from the tables below; tests compare them with the command's own.

_dumpfs_verbs='mount umount info ls cat dmesg write check'

# Options of each verb; those that take a value are in _dumpfs_takes_value too.
declare -gA _dumpfs_flags=(
    [mount]='--help -h -o -f --foreground -d --debug'
    [umount]='--help -h -l --lazy'
    [info]='--help -h -o --json --vmlinux'
    [ls]='--help -h -o'
    [cat]='--help -h -o --offset --count'
    [dmesg]='--help -h -o --caller --device'
    [write]='--help -h -c -l -p -z -E -F -R --split --reassemble --splitblock-size -d -x -i --keep-unknown
        --keep-partial --begin --length --config -f --resume -L --limit-size --num-threads --check
        --dry-run --show-stats --json --message-level -D -g --dump-dmesg --partial-dmesg --vtop
        --check-params -v'
    [check]='--help -h -o --json -q --quiet --jobs'
)
_mount_dumpfs_flags='--help -h -s -f -n -v -o -t --version'
_dumpfs_takes_value='-o --vmlinux --offset --count --jobs'

# What -o takes: of every verb that reads a dump, and of those that mount.
_dumpfs_reading='holes= pages= cache= format= map= vmcoreinfo= vmlinux= phys_base= kaslr= caller device'
_dumpfs_mounting='allow_other uid= gid= umask= workers= log= part= ro nodev nosuid noexec default_permissions'

# What may stand behind the = of an option; FILE, USER and GROUP stand for what they say.
declare -gA _dumpfs_values=(
    [holes]='zero error'
    [pages]='auto list open'
    [format]='kdump elf lime raw'
    [vmcoreinfo]=FILE
    [vmlinux]=FILE
    [uid]=USER
    [gid]=GROUP
    [log]=FILE
    [part]=FILE
)

# Files of the tree.
_dumpfs_views='README bitmaps/ram bitmaps/stored btf cmdline config cpus/ dmesg eraseinfo gdb/extra.symbols gdb/modules.json gdbinit hmem info.json kallsyms memmap modules pages/ status tasks/ version vmcore vmcore-kern vmcore-tasks vmcoreinfo vmlinux'

# File names and mount points are a stranger's: they are compared as they are, never given to compgen -W or anything else
# that expands its words, and quoted here. (Readline would quote file names, but only those that it still finds there.)

# Cuts the line left of the cursor into words, as the shell would: sets _dumpfs_words to what they say without their
# quotes, and _dumpfs_kept to how much of the last one stands before the last character at which readline begins anew.
# Fails within quotes: what is inserted there would be quoted twice.
_dumpfs_cut() {
    local line=${COMP_LINE:0:COMP_POINT} char quote='' word='' inside=0 i
    _dumpfs_words=() _dumpfs_kept=0
    for ((i = 0; i < ${#line}; i++)); do
        char=${line:i:1}
        if [[ $quote == "'" || $quote == '"' ]] && [[ $char == "$quote" ]]; then
            quote=''
        elif [[ $quote == "'" ]]; then
            word+=$char
        elif [[ $char == \\ ]]; then
            i=$((i + 1)) inside=1
            [[ $quote == '"' && ${line:i:1} != [\"\\\$\`] ]] && word+=\\
            word+=${line:i:1}
        elif [[ $quote == '"' ]]; then
            word+=$char
        elif [[ $char == "'" || $char == '"' ]]; then
            quote=$char inside=1
        elif [[ $char == [[:space:]] ]]; then
            ((inside)) && _dumpfs_words+=("$word")
            word='' inside=0 _dumpfs_kept=0
        else
            word+=$char inside=1
            [[ $char == [=:] && $COMP_WORDBREAKS == *"$char"* ]] && _dumpfs_kept=${#word}
        fi
    done
    _dumpfs_words+=("$word")
    [[ -z $quote ]]
}

# Offers those of the words $2... that begin with $1, which they replace.
_dumpfs_offer() {
    local cur=$1 word quoted
    shift
    for word; do
        [[ $word == "$cur"* ]] || continue
        printf -v quoted %q "${word:_dumpfs_kept}"
        [[ $quoted == "''" ]] && quoted=''
        # Commas mean something only within braces, which are quoted.
        [[ $quoted == \$* ]] || quoted=${quoted//\\,/,}
        COMPREPLY+=("$quoted")
    done
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

# Offers the files whose names begin with $2; $1 stands before the name in the same word.
_dumpfs_offer_files() {
    local before=$1 begin=$2 path shown paths=()
    path=$begin
    [[ $path == \~/* ]] && path=$HOME${path:1}
    while IFS= read -r -d '' shown; do
        [[ -d $shown ]] && shown+=/
        paths+=("$before$begin${shown:${#path}}")
    done < <(shopt -s nullglob; set +f; for shown in "$path"*; do printf '%s\0' "$shown"; done)
    _dumpfs_offer "$before$begin" "${paths[@]}"
}

# Offers what may stand behind -o: $1 is the word so far, for instance ro,holes=z; $2... are the names.
_dumpfs_offer_options() {
    local cur=$1 last=${1##*,} before=${1%"${1##*,}"} word words=()
    shift
    if [[ $last != *=* ]]; then
        _dumpfs_offer "$cur" "${@/#/"$before"}"
        return
    fi
    local name=${last%%=*} value=${last#*=}
    [[ $name == *[!a-z_]* || -z $name ]] && return
    case ${_dumpfs_values[$name]-} in
        FILE) _dumpfs_offer_files "$before$name=" "$value"; return ;;
        USER) mapfile -t words < <(compgen -u -- "$value") ;;
        GROUP) mapfile -t words < <(compgen -g -- "$value") ;;
        *) read -ra words <<<"${_dumpfs_values[$name]-}" ;;
    esac
    _dumpfs_offer "$cur" "${words[@]/#/"$before$name="}"
}

# Offers the mount points of dumps that begin with $1. The kernel writes spaces, newlines and backslashes as \ooo.
_dumpfs_offer_mounts() {
    local type point _ points=()
    while read -r _ point type _; do
        [[ $type == fuse.dumpfs ]] || continue
        printf -v point %b "${point//\\/\\0}."
        points+=("${point%.}")
    done <"${_dumpfs_mounts:-/proc/self/mounts}"
    _dumpfs_offer "$1" "${points[@]}"
}

_dumpfs() {
    local IFS=$' \t\n' _dumpfs_words=() _dumpfs_kept=0 names=() verb='' word i count=0 skip=0
    COMPREPLY=()
    _dumpfs_cut || return
    local cur=${_dumpfs_words[-1]}
    for ((i = 1; i < ${#_dumpfs_words[@]} - 1; i++)); do
        word=${_dumpfs_words[i]}
        if [[ -z $verb ]]; then
            [[ $word == -* ]] || verb=$word
        elif ((skip)); then
            skip=0
        elif [[ " $_dumpfs_takes_value " == *" $word "* ]]; then
            skip=1
        elif [[ $word != -* ]]; then
            count=$((count + 1))
        fi
    done
    if [[ -z $verb ]]; then
        read -ra names <<<"$_dumpfs_verbs --help --version"
        _dumpfs_offer "$cur" "${names[@]}"
    elif [[ " $_dumpfs_verbs " == *" $verb "* ]]; then
        _dumpfs_complete_verb "$verb" "$cur" "${_dumpfs_words[-2]}" "$count"
    fi
}

# $1 verb, $2 the word so far, $3 the word before, $4 how many files stand before it
_dumpfs_complete_verb() {
    local verb=$1 cur=$2 prev=$3 count=$4 names=()
    if [[ $prev == -o ]]; then
        read -ra names <<<"$_dumpfs_reading"
        [[ $verb == mount ]] && read -ra names <<<"$_dumpfs_reading $_dumpfs_mounting"
        _dumpfs_offer_options "$cur" "${names[@]}"
    elif [[ $cur == -* ]]; then
        read -rd '' -a names <<<"${_dumpfs_flags[$verb]}"
        _dumpfs_offer "$cur" "${names[@]}"
    elif [[ $prev == --offset || $prev == --count || $prev == --jobs ]]; then
        return
    elif [[ $verb == umount ]]; then
        _dumpfs_offer_mounts "$cur"
    elif [[ ( $verb == cat || $verb == ls ) && $count -gt 0 ]]; then
        read -ra names <<<"$_dumpfs_views"
        _dumpfs_offer "$cur" "${names[@]}"
    fi
    # Nothing found: readline completes file names, as "complete -o default" below asks for.
}

_mount_dumpfs() {
    local IFS=$' \t\n' _dumpfs_words=() _dumpfs_kept=0 names=()
    COMPREPLY=()
    _dumpfs_cut || return
    local cur=${_dumpfs_words[-1]}
    if [[ ${#_dumpfs_words[@]} -gt 1 && ${_dumpfs_words[-2]} == -o ]]; then
        read -ra names <<<"$_dumpfs_reading $_dumpfs_mounting"
        _dumpfs_offer_options "$cur" "${names[@]}"
    elif [[ $cur == -* ]]; then
        read -ra names <<<"$_mount_dumpfs_flags"
        _dumpfs_offer "$cur" "${names[@]}"
    fi
}

complete -o default -F _dumpfs dumpfs
complete -o default -F _mount_dumpfs mount.dumpfs
