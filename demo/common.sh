# What both demos need: a folder that is removed, servers that are ended, and commands that are shown before they run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

folder=$(mktemp -d)
servers=()
end() {
    kill "${servers[@]}" 2>/dev/null || true
    wait "${servers[@]}" 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

# show COMMAND...: show a command, and run it.
show() {
    say "$*"
    "$@"
}

# start NAME LAST-LINE COMMAND...: run a server, wait for the last line of its greeting, set $address, and $http where it
# answers HTTP too.
start() {
    local greeting="$folder/$1" last=$2
    shift 2
    say "$* &"
    "$@" >"$greeting" 2>"$greeting.log" 4>&- 5>&- & # which are the ends of loads
    servers+=($!)
    for _ in $(seq 900); do
        grep -qs "$last" "$greeting" && break
        kill -0 "${servers[-1]}" || { cat "$greeting.log"; echo "the server did not start"; exit 1; }
        sleep 0.1
    done
    cat "$greeting"
    address=$(sed -n '1s/.* listening on //p' "$greeting")
    http=$(sed -n 's/.* listening on http/http/p' "$greeting")
}

# elapsed COMMAND...: run a command, set $took_ms.
elapsed() {
    local before=${EPOCHREALTIME/[.,]/}
    "$@"
    took_ms=$(((${EPOCHREALTIME/[.,]/} - before) / 1000))
}

anywhere=tcp:0:interface=127.0.0.1
