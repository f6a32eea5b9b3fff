# What `boot` and `boot-qemu` have in common. Each sources it, gives its arguments to `begin`, says in "$work/kernel"
# what `init` has to know of its kernel, starts that by `run`, and ends with `report`.

memory=768 limit=300 kernel_root=/
# The machine, and others that it needs, as long as they run.
machine='' servants=()

die() { echo "${0##*/}: $1" >&2; exit "${2:-125}"; }

# begin OPTIONS USAGE ARGUMENT...
begin() {
  local options=$1 usage="usage: ${0##*/} $2 PROGRAM [ARGUMENT...]" option
  shift 2
  while getopts "$options" option; do
    case $option in
    m) memory=$OPTARG ;;
    t) limit=$OPTARG ;;
    k) kernel_root=$OPTARG ;;
    *) echo "$usage" >&2; exit 2 ;;
    esac
  done
  shift $((OPTIND - 1))
  [[ $# -gt 0 ]] || { echo "$usage" >&2; exit 2; }
  work=$(mktemp -d)
  trap clean EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  # What the program is called with, its folder and its environment, as shell text.
  {
    export -p
    printf 'cd %q\n' "$PWD"
    printf '%q ' "$@"
    echo
  } >"$work/command"
}

clean() {
  local pid
  for pid in $machine "${servants[@]}"; do kill "$pid" 2>/dev/null; done
  wait
  rm -rf "$work"
}

# run COMMAND...: the machine, no longer than it may. In the background, so that a signal ends it at once.
run() {
  setpriv --pdeathsig TERM timeout -k 5 "$limit" "$@" </dev/null &
  machine=$!
  wait "$machine"
  ended=$?
  machine=''
}

report() {
  [[ ! -s $work/status ]] || exit "$(<"$work/status")"
  cat "$work/log" "$work/said" "$work/dmesg" >&2 2>/dev/null
  [[ $ended != 124 && $ended != 137 ]] || exit 124
  exit 125
}
