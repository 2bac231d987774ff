#!/usr/bin/env bash
# The poem family: a transform server with two plugins, a poem through each way to call it, poem servers, a proxy, and
# the client that gets poems from all of them at once; a caching proxy for transforms; and the end of the servers.
source "$(dirname "$0")/common.sh"

start transforms 'transforms from' xformd serve --plugins --port 0 --http "$anywhere"
server=${servers[0]}
front=$http
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

if command -v curl >/dev/null; then
    say "curl $front/transform/wrap?width=24 --data-binary @owl.txt"
    curl -sS "$front/transform/wrap?width=24" --data-binary @owl.txt

    say "curl $front/readyz"
    curl -sS "$front/readyz"
    echo
fi

start poem 'the poem of' xformd poem serve owl.txt --listen "$anywhere"
fast=$address
start slow 'the poem of' xformd poem serve owl.txt --slow 70 --listen "$anywhere" # 2 s for each client
slow=$address
start proxy 'the poem of' xformd poem proxy "$slow" --ttl 60 --listen "$anywhere"
proxy=$address

say "xformd poem get --transform cummingsify $fast $slow $slow $proxy    # three of them take 2 s each"
elapsed xformd poem get --transform cummingsify "$fast" >/dev/null
start_ms=$took_ms # of the command itself, on this machine
elapsed xformd poem get --transform cummingsify "$fast" "$slow" "$slow" "$proxy"
echo "four poems in $took_ms ms"
((took_ms < 2 * start_ms + 4000)) || { echo "they did not come at once"; exit 1; }
echo 'one after the other would have taken 6 s: they came at once'

say "xformd poem get $proxy    # from its cache"
elapsed xformd poem get "$proxy"
echo "one poem in $took_ms ms, and not in 2 s"

start cache 'the transforms of' xformd proxy "$XFORMD_SERVER" --port 0
cache=$address

say "xformd send cummingsify owl.txt --server $cache    # and once more, which no upstream sees"
for _ in 1 2; do
    xformd send cummingsify owl.txt --server "$cache"
done

say "xformd list-transforms --server $cache | tail -n 1"
xformd list-transforms --server "$cache" | tail -n 1

say "kill %1; wait %1"
kill "$server"
wait "$server"
echo "the server has stopped with status $?"
