#!/usr/bin/env bash
# Three servers behind HAProxy, with docs/deploy/haproxy.cfg but for TLS, under load over HTTP and in sessions: one is
# killed, the others are upgraded one after the other, and no request fails.
source "$(dirname "$0")/common.sh"
PATH="$PATH:/usr/sbin"
command -v haproxy >/dev/null || { echo "install haproxy for this demo"; exit 1; }

cp -r plugins "$folder/plugins"
nodes=(one two three)
declare -A pid http_of netstrings_of agent_of

# serve NODE [HTTP-PORT NETSTRING-PORT AGENT-PORT]: start a server, where it was if the ports are given.
serve() {
    local at=":interface=127.0.0.1"
    start "$1" 'transforms from' xformd serve --plugins none --plugins-dir "$folder/plugins" --workers 1 --node "$1" \
        --http "tcp:${2:-0}$at" --listen "haproxy:tcp:${3:-0}$at" --agent "tcp:${4:-0}$at" \
        --trusted-proxies 127.0.0.1 --drain-delay 1500ms
    pid[$1]=${servers[-1]}
    netstrings_of[$1]=${address##*:}
    http_of[$1]=$(sed -n 's/.* listening on http.*://p' "$folder/$1")
    agent_of[$1]=$(sed -n 's/.* listening on agent.*://p' "$folder/$1")
}

# await NODE STATE: wait until HAProxy thinks so of a server.
await() {
    for _ in $(seq 900); do
        [[ $(states) == *"$1 is $2"* ]] && { echo "HAProxy: $1 is $2"; return; }
        sleep 0.05
    done
    echo "$1 did not become $2: $(states)"
    exit 1
}
states() {
    python - "$folder/admin.sock" <<'PYTHON'
import csv, socket, sys
with socket.socket(socket.AF_UNIX) as admin:
    admin.connect(sys.argv[1])
    admin.sendall(b"show stat xformd 4 -1\n")
    rows = csv.DictReader(admin.makefile().read().strip().splitlines())
    print(*(f"{row['svname']} is {row['status']}" for row in rows), sep=", ")
PYTHON
}

for node in "${nodes[@]}"; do serve "$node"; done

read -r http netstrings <<<"$(python -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in free))')"
changes=(-e "s|/run/haproxy/admin.sock|$folder/admin.sock|" -e "s|abns@xformd-once|abns@$(basename "$folder")|"
    -e '/bind :80$/d' -e '/redirect scheme https/d' -e "s|bind :443 .*|bind 127.0.0.1:$http|"
    -e "s|bind :11000 .*|bind 127.0.0.1:$netstrings|" -e 's|agent-port 8404 ||')
number=0
for node in "${nodes[@]}"; do
    number=$((number + 1))
    changes+=(-e "s|10.0.0.$number:11080|127.0.0.1:${http_of[$node]} agent-port ${agent_of[$node]}|"
        -e "s|10.0.0.$number:11001|127.0.0.1:${netstrings_of[$node]}|")
done
sed "${changes[@]}" ../docs/deploy/haproxy.cfg >"$folder/haproxy.cfg"
say "haproxy -db -f haproxy.cfg &    # docs/deploy/haproxy.cfg with these ports"
haproxy -db -f "$folder/haproxy.cfg" >"$folder/haproxy.log" 2>&1 &
servers+=($!)
for _ in $(seq 900); do [ -S "$folder/admin.sock" ] && break; sleep 0.05; done
for node in "${nodes[@]}"; do await "$node" UP; done
sleep 0.3 | python http_load.py "127.0.0.1:$http" /transform/greet Owl >/dev/null # HAProxy learns that it may run twice

say "python http_load.py 127.0.0.1:$http /transform/greet Owl & python load.py greet Owl &    # 4 clients each"
export XFORMD_SERVER=127.0.0.1:$netstrings
exec 4> >(python http_load.py "127.0.0.1:$http" /transform/greet Owl >"$folder/over-http")
over_http=$!
exec 5> >(python load.py greet Owl >"$folder/in-sessions" 4>&-)
in_sessions=$!
sleep 1

say "kill -9 \$one"
kill -9 "${pid[one]}"
wait "${pid[one]}" 2>/dev/null || true # which bash would report by itself, later
await one DOWN

say "sed -i s/Hello/Welcome/ plugins/trouble.py    # an upgrade: each server is restarted, once the other is back"
sed -i s/Hello/Welcome/ "$folder/plugins/trouble.py"
serve one "${http_of[one]}" "${netstrings_of[one]}" "${agent_of[one]}"
await one UP
for node in two three; do
    say "kill \$$node"
    kill "${pid[$node]}"
    await "$node" DRAIN
    wait "${pid[$node]}"
    echo "$node has answered everything, and ended with status $?"
    serve "$node" "${http_of[$node]}" "${netstrings_of[$node]}" "${agent_of[$node]}"
    await "$node" UP
done

exec 4>&- 5>&-
wait "$over_http" "$in_sessions" || true
for load in over-http in-sessions; do
    say "# $load"
    cat "$folder/$load"
    grep -q Hello "$folder/$load" && grep -q Welcome "$folder/$load" && grep -q '     0 failed' "$folder/$load" ||
        { echo "some requests failed, or nothing was upgraded"; exit 1; }
done
echo 'one server was killed and the others were upgraded: no request failed'
