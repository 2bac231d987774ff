#!/usr/bin/env bash
# A server with two plugins, a poem through each way to call it, and the end of the server.
set -euo pipefail
cd "$(dirname "$0")"

folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

say 'xformd serve --plugins --port 0 &'
xformd serve --plugins --port 0 >"$folder/greeting" &
server=$!
for _ in $(seq 300); do
    grep -q 'transforms from' "$folder/greeting" && break
    kill -0 "$server" || { echo "the server did not start"; exit 1; }
    sleep 0.1
done
cat "$folder/greeting"
address=$(sed -n 's/.* listening on //p' "$folder/greeting")
export XFORMD_SERVER=$address

say 'xformd send cummingsify owl.txt'
xformd send cummingsify owl.txt

say 'xformd send shout -o marks=3 owl.txt        # from the plugin xformd-shout'
xformd send shout -o marks=3 owl.txt

say 'xformd send trim+wrap:width=24+number-lines owl.txt'
xformd send trim+wrap:width=24+number-lines owl.txt

say 'echo "# The *Owl*" | xformd send markdown    # from the plugin xformd-markdown'
echo '# The *Owl*' | xformd send markdown

say "exec 3<>/dev/tcp/${address/:/\/}; printf '27:cummingsify.HERE IS MY POEM,' >&3; cat <&3    # what nc would do"
exec 3<>"/dev/tcp/${address/:/\/}"
printf '27:cummingsify.HERE IS MY POEM,' >&3
cat <&3
echo
exec 3>&-

say 'kill %1; wait %1'
kill "$server"
wait "$server"
echo "the server has stopped with status $?"
