# bash completion for dumpfs(1) and mount.dumpfs(8)
#
# Needs bash 4.2 and nothing else. Words come from the tables below; tests compare them with the command's own.

_dumpfs_verbs='mount umount info cat dmesg write check'

# Options of each verb; those that take a value are in _dumpfs_takes_value too.
declare -gA _dumpfs_flags=(
    [mount]='--help -h -o -f --foreground -d --debug'
    [umount]='--help -h -l --lazy'
    [info]='--help -h -o --json --vmlinux'
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
_dumpfs_reading='holes= pages= cache= format= vmcoreinfo= vmlinux= phys_base= kaslr= caller device'
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
_dumpfs_views='README bitmaps/ram bitmaps/stored btf cmdline config cpus/ dmesg gdb/extra.symbols gdb/modules.json gdbinit hmem info.json kallsyms memmap modules pages/ status tasks/ version vmcore vmcore-kern vmcore-tasks vmcoreinfo vmlinux'

# The word left of the cursor as the shell will see it: COMP_WORDS is cut at = and : too.
_dumpfs_word() {
    local line=${COMP_LINE:0:COMP_POINT}
    printf '%s' "${line##*[[:space:]]}"
}

# Offers the words of $1 (whole words, which replace $2) that begin with $2.
_dumpfs_offer() {
    local cur=$2 prefix='' word
    # readline replaces only what follows the last break character.
    if [[ $COMP_WORDBREAKS == *=* && $cur == *=* ]]; then
        prefix=${cur%"${cur##*=}"}
    fi
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$prefix"}")
    done < <(compgen -W "$1" -- "$cur")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

# Offers what may stand behind -o: $1 are the names, $2 is the word so far, for instance ro,holes=z
_dumpfs_offer_options() {
    local names=$1 cur=$2 last=${2##*,} before=${2%"${2##*,}"} word words=''
    if [[ $last != *=* ]]; then
        for word in $names; do
            words+=" $before$word"
        done
        _dumpfs_offer "$words" "$cur"
        return
    fi
    local name=${last%%=*} value=${last#*=} action=()
    case ${_dumpfs_values[$name]-} in
        FILE) action=(-f); compopt -o filenames 2>/dev/null ;;
        USER) action=(-u) ;;
        GROUP) action=(-g) ;;
        *) action=(-W "${_dumpfs_values[$name]-}") ;;
    esac
    while IFS= read -r word; do
        words+=" $before$name=$word"
    done < <(compgen "${action[@]}" -- "$value")
    _dumpfs_offer "$words" "$cur"
}

# Offers the mount points of dumps.
_dumpfs_offer_mounts() {
    local type point _ points=''
    while read -r _ point type _; do
        [[ $type == fuse.dumpfs ]] && points+=" $point"
    done </proc/self/mounts
    _dumpfs_offer "$points" "$1"
}

_dumpfs() {
    local cur prev=${COMP_WORDS[COMP_CWORD-1]} verb='' word i words=0 skip=0
    cur=$(_dumpfs_word)
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -z $verb ]]; then
            [[ $word == -* ]] || verb=$word
        elif ((skip)); then
            skip=0
        elif [[ " $_dumpfs_takes_value " == *" $word "* ]]; then
            skip=1
        elif [[ $word != -* && $word != = ]]; then
            words=$((words + 1))
        fi
    done
    if [[ -z $verb ]]; then
        _dumpfs_offer "$_dumpfs_verbs --help --version" "$cur"
        return
    fi
    _dumpfs_complete_verb "$verb" "$cur" "$prev" "$words"
}

# $1 verb, $2 the word so far, $3 the word before, $4 how many files stand before it
_dumpfs_complete_verb() {
    local verb=$1 cur=$2 prev=$3 words=$4 names=$_dumpfs_reading
    [[ $verb == mount ]] && names+=" $_dumpfs_mounting"
    # Bash cuts -o holes=z in three words: the one before the cursor tells nothing, the line does.
    local before=${COMP_LINE:0:COMP_POINT-${#cur}}
    before=${before%"${before##*[![:space:]]}"}
    if [[ ${before##*[[:space:]]} == -o ]]; then
        _dumpfs_offer_options "$names" "$cur"
    elif [[ $cur == -* ]]; then
        _dumpfs_offer "${_dumpfs_flags[$verb]-}" "$cur"
    elif [[ $prev == --offset || $prev == --count || $prev == --jobs ]]; then
        return
    elif [[ $verb == umount ]]; then
        _dumpfs_offer_mounts "$cur"
    elif [[ $verb == cat && $words -gt 0 ]]; then
        _dumpfs_offer "$_dumpfs_views" "$cur"
    fi
    # Nothing found: readline completes file names, as "complete -o default" below asks for.
}

_mount_dumpfs() {
    local cur before
    cur=$(_dumpfs_word)
    before=${COMP_LINE:0:COMP_POINT-${#cur}}
    before=${before%"${before##*[![:space:]]}"}
    COMPREPLY=()
    if [[ ${before##*[[:space:]]} == -o ]]; then
        _dumpfs_offer_options "$_dumpfs_reading $_dumpfs_mounting" "$cur"
    elif [[ $cur == -* ]]; then
        _dumpfs_offer "$_mount_dumpfs_flags" "$cur"
    fi
}

complete -o default -F _dumpfs dumpfs
complete -o default -F _mount_dumpfs mount.dumpfs
