#!/bin/sh
# What `docker compose up` sends: a post to two phones and to one with a dead token, and a reminder of a dose
# that is due now.
# To send more: docker compose run --rm hello
set -eu
pushcast=http://pushcast:9464
sandbox=http://sandbox:8085
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)

# until_done WHAT COMMAND…: runs COMMAND until it succeeds, for a minute at most.
until_done() {
    what=$1 left=120
    shift
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "error: waited a minute for $what" >&2; exit 1; }
        sleep 0.5
    done
}

# For the sandbox every token with "dead" in it is dead.
pushcast produce device-tokens <<END
{"token":"ExponentPushToken[hello]","userId":"hello-1","platform":"ios"}
{"token":"ExponentPushToken[dead-hello]","userId":"hello-2","platform":"android"}
{"token":"helloHELLOhelloHELLO12","userId":"hello-3","platform":"android"}
END
is_registered() {
    for user in hello-1 hello-3; do
        curl -fsS "$pushcast/inspect/user/$user" | grep -q '"kind"' || return 1
    done
}
until_done "the registrations" is_registered

curl -fsS -X POST "$sandbox/sandbox/reset"
pushcast produce posts-created <<END
{"postId":"hello-$now","authorId":"ann","authorName":"Ann","title":"Hello from pushcast"}
END
medicine='"medicineName":"Metformin","dosage":"500 mg"'
pushcast produce medication-ticks <<END
{"dose":{"regimenId":"hello","profileId":"hello","userId":"hello-3","scheduleTime":"$now",$medicine}}
END
has_arrived() {
    curl -fsS "$sandbox/sandbox/messages" >/tmp/messages || return 1
    for text in 'ExponentPushToken\[hello\]' 'Hello from pushcast' Metformin; do
        grep -q "$text" /tmp/messages || return 1
    done
}
until_done "the push messages" has_arrived

echo "The phones got these messages; http://127.0.0.1:8085/sandbox/messages has all of them:"
grep -oE '"token":"[^"]*","title":"[^"]*","body":"[^"]*"' /tmp/messages
echo "Dashboard: http://127.0.0.1:3000"
