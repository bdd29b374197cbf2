# Shared by the scripts in this folder; sourced, never run.

# say TEXT: one line of progress, on stderr so that a script's result can be read from its stdout.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT: one sentence that says what is wrong and what to do.
die() {
    say "$@"
    exit 1
}

# with_heartbeat LABEL COMMAND...: run COMMAND, with a line every 20 s so that a long silent step shows that it lives.
with_heartbeat() {
    local label=$1 started=$SECONDS beat status=0
    shift
    say "$label ..."
    (
        while sleep 20 && kill -0 $$ 2>/dev/null; do say "$label: still going after $((SECONDS - started)) s"; done
    ) &
    beat=$!
    "$@" || status=$?
    kill "$beat" 2>/dev/null
    wait "$beat" 2>/dev/null || true
    ((status == 0)) && say "$label: done in $((SECONDS - started)) s"
    return "$status"
}
