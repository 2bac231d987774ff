#!/usr/bin/env bash
# What xformd is for, in under a minute: pictures and pages become something else; any command is a transform; one that
# hangs and one that crashes, beside requests that do not notice; a plugin that is upgraded under load.
source "$(dirname "$0")/common.sh"

cp -r plugins "$folder/plugins"
start transforms 'transforms from' xformd serve --config demo.toml --plugins --plugins-dir "$folder/plugins" \
    --workers 2 --port 0 --http "$anywhere"
server=${servers[0]}
page=$http
export XFORMD_SERVER=$address

say "xformd send thumbnail:width=120 --output-dir \$out page.png"
xformd send thumbnail:width=120 --output-dir "$folder" ../docs/pictures/page-light.png
(cd "$folder" && ls -l page-light.*)

say "xformd send markdown+html-to-pdf --output-dir \$out owl.md"
xformd send markdown+html-to-pdf --output-dir "$folder" owl.md
(cd "$folder" && ls -l owl.*)

say "cat demo.toml; xformd send narrow:width=24 owl.txt"
cat demo.toml
xformd send narrow:width=24 owl.txt

# load SECONDS: greetings by four clients for as long as standard input is open.
load() { python load.py greet Owl >"$folder/load"; }

say "xformd send hang owl.txt; xformd send crash owl.txt    # beside four clients of another transform"
exec 4> >(load)
loader=$!
xformd send hang owl.txt || true
xformd send crash owl.txt || true
exec 4>&-
wait "$loader" || true
cat "$folder/load"
grep -q '     0 failed' "$folder/load" || { echo "some of the other requests failed"; exit 1; }
echo 'what hung and what crashed harmed nobody else'

say "sed -i s/Hello/Welcome/ plugins/trouble.py; kill -HUP %1    # an upgrade under the same load"
exec 4> >(load)
loader=$!
sleep 0.5
sed -i s/Hello/Welcome/ "$folder/plugins/trouble.py"
kill -HUP "$server"
for _ in $(seq 600); do
    [ "$(echo -n Owl | xformd send greet)" = 'Welcome, Owl' ] && break
    sleep 0.1
done
exec 4>&-
wait "$loader" || true
cat "$folder/load"
grep -q Hello "$folder/load" && grep -q Welcome "$folder/load" && grep -q '     0 failed' "$folder/load" ||
    { echo "the upgrade was noticed"; exit 1; }
echo 'the upgrade cost no request'

say "kill %1; wait %1    # with 'xformd serve --plugins' of your own, the page would be at $page"
kill "$server"
wait "$server"
echo "the server has stopped with status $?"
