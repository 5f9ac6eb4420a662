# What jobs of a chaos run do. Sourced by sh, with what to do in CHAOS_*; see workload.py. Each execution writes into its job's journal,
# a file outside of the system, when it begins and when it ends: one line, one write.
set -e
read -r stat < /proc/$$/stat
set -- $stat
nonce="$$-${22}"
journal="$CHAOS_PLACE/journals/$CHAOS_NUMBER${OSTLER_ARRAY_INDEX:+.$OSTLER_ARRAY_INDEX}"
of="$CHAOS_NUMBER $OSTLER_ATTEMPT $nonce"

note() {
    read -r up _ < /proc/uptime
    echo "$1 $OSTLER_JOB_ID $OSTLER_ATTEMPT $nonce $up $2" >> "$journal"
}

leave() { # an error of a disk that is full counts as 66
    trap - EXIT
    note end "$1"
    exit "$1"
}

note begin "$PWD"
trap 'leave 66' EXIT
before=0
while read -r word _; do
    [ "$word" != begin ] || before=$((before + 1))
done < "$journal"

case "${CHAOS_DETACH:-}" in
    session) setsid sleep 600 & ;;
    double) (setsid sleep 600 > /dev/null 2>&1 < /dev/null &) ;;
    stopped) (setsid sh -c 'kill -STOP $$; sleep 600' > /dev/null 2>&1 &) ;;
    deaf) (setsid sh -c 'trap "" TERM INT HUP; sleep 600; sleep 600' > /dev/null 2>&1 &) ;;
esac

if [ -n "${CHAOS_SECRET:-}" ]; then
    read -r found < "$OSTLER_SECRETS_DIR/$CHAOS_SECRET" || true
    [ "$found" = only-for-jobs-of-the-chaos-run ] || leave 67
fi
if [ -n "${CHAOS_INPUT:-}" ]; then
    note input "$(sha256sum < "$CHAOS_INPUT")"
fi
if [ -n "${CHAOS_HANDED:-}" ]; then
    note handed "$(sha256sum < "$CHAOS_HANDED")"
fi

# Lines in steps, so that logs grow while they are read.
steps=${CHAOS_STEPS:-1}
step=0
from=0
while [ $step -lt $steps ]; do
    step=$((step + 1))
    to=$((CHAOS_LINES * step / steps))
    if [ $((to - from)) -lt 10 ]; then
        while [ $from -lt $to ]; do echo "line $from of $of"; from=$((from + 1)); done
    else
        awk -v a=$from -v b=$to -v w="$of" 'BEGIN { for (i = a; i < b; i++) print "line " i " of " w; if (close("/dev/stdout")) exit 1 }'
        from=$to
    fi
    [ "${CHAOS_PAUSE:-0}" = 0 ] || sleep "$CHAOS_PAUSE"
done
if [ "$CHAOS_ERRORS" -gt 0 ]; then
    awk -v b="$CHAOS_ERRORS" -v w="$of" 'BEGIN { for (i = 0; i < b; i++) print "error " i " of " w }' >&2
fi
if [ -n "${CHAOS_HUNGRY:-}" ]; then
    # In the place of this shell: the kernel ends what grows, and that must be the attempt itself.
    exec tail -n 1 /dev/zero
fi
if [ "$before" -le "${CHAOS_FAILS:-0}" ]; then
    leave "$CHAOS_CODE"
fi
place=0
for size in $CHAOS_SIZES; do
    # Lines "i number attempt nonce place", cut at the size.
    awk -v n="$size" -v w="$of $place" 'BEGIN { for (at = 0; at < n; at += length(s)) { s = i++ " " w "\n"; printf "%s", substr(s, 1, n - at) } }' > "out$place"
    place=$((place + 1))
done
leave 0
