// Runs the vectors against the Go client, or drives it as lines of JSON say: see test_other_languages.py.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"

	"xformd.example/xformd"
)

type object = map[string]any

func main() {
	if os.Args[1] == "vectors" {
		runVectors(os.Args[2])
		return
	}
	drive()
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func latin1(data []byte) string {
	var text strings.Builder
	for _, each := range data {
		text.WriteRune(rune(each))
	}
	return text.String()
}

func bytesOf(text string) []byte {
	var data []byte
	for _, each := range text {
		data = append(data, byte(each))
	}
	return data
}

func equal(found, wanted any) error {
	if reflect.DeepEqual(found, wanted) {
		return nil
	}
	return fmt.Errorf("%v instead of %v", found, wanted)
}

var errSkipped = errors.New("this client never sends such a thing")

type split struct {
	name string
	of   func(data []byte) [][]byte
}

var whole = split{"whole", func(data []byte) [][]byte { return [][]byte{data} }}

var byteByByte = split{"byte by byte", func(data []byte) [][]byte {
	var pieces [][]byte
	for place := range data {
		pieces = append(pieces, data[place:place+1])
	}
	return pieces
}}

func runVectors(folder string) {
	report := struct {
		Passed  int      `json:"passed"`
		Failed  []string `json:"failed"`
		Skipped []string `json:"skipped"`
	}{Failed: []string{}, Skipped: []string{}}
	run := func(kind string, vectors []object, check func(vector object, split split) error, splits ...split) {
		for _, vector := range vectors {
			for _, each := range splits {
				label := fmt.Sprintf("%s: %s", kind, vector["name"])
				if err := guarded(check, vector, each); err == errSkipped {
					report.Skipped = append(report.Skipped, label)
				} else if err != nil {
					report.Failed = append(report.Failed, fmt.Sprintf("%s, %s: %s", label, each.name, err))
				} else {
					report.Passed++
				}
			}
		}
	}
	var netstrings []object
	var sessions struct {
		ToServer []object `json:"to_server"`
		ToClient []object `json:"to_client"`
		Sessions []object `json:"sessions"`
	}
	must(0, json.Unmarshal(must(os.ReadFile(folder+"/netstrings.json")), &netstrings))
	must(0, json.Unmarshal(must(os.ReadFile(folder+"/session.json")), &sessions))
	run("netstrings", netstrings, readsNetstrings, whole, byteByByte)
	run("to_server", sessions.ToServer, sends, whole)
	run("to_client", sessions.ToClient, receives, whole)
	run("sessions", sessions.Sessions, plays, whole, byteByByte)
	must(0, json.NewEncoder(os.Stdout).Encode(report))
}

func guarded(check func(object, split) error, vector object, split split) (err error) {
	defer func() {
		if failure := recover(); failure != nil {
			err = fmt.Errorf("panic: %v", failure)
		}
	}()
	return check(vector, split)
}

func readsNetstrings(vector object, split split) error {
	decoder := xformd.NewDecoder(int64(vector["max_length"].(float64)))
	found := []any{}
	for _, piece := range split.of(must(hex.DecodeString(vector["hex"].(string)))) {
		for _, each := range decoder.Decode(piece) {
			found = append(found, hex.EncodeToString(each))
		}
	}
	var violation, offset any
	if decoder.Violation != "" {
		violation, offset = decoder.Violation, float64(decoder.Offset)
	} else if decoder.IsInside() {
		violation = "incomplete"
	}
	return equal([]any{found, violation, offset}, []any{vector["payloads"], vector["error"], vector["reject_at"]})
}

var (
	neverSent = regexp.MustCompile(`timeout=9|owl=| timeout=\D| timeout=.* timeout=`)
	frame     = regexp.MustCompile(`^\d+:`)
	hasSpec   = regexp.MustCompile(`^\d+ ([^!.]*)\.`)
)

func inside(framed []byte) string {
	text := latin1(framed)
	return strings.TrimSuffix(text[len(frame.FindString(text)):], ",")
}

func sends(vector object, _ split) error {
	text := vector["string"].(string)
	if neverSent.MatchString(text) {
		return errSkipped
	}
	if control, isControl := vector["control"].(object); isControl {
		token, _ := control["token"].(string)
		return equal(inside(xformd.EncodeControl(int64(control["id"].(float64)), control["control"].(string), token)), text)
	}
	if request, isRequest := vector["request"].(object); isRequest {
		if request["client"] != nil {
			return errSkipped
		}
		var specs []string
		for _, each := range request["steps"].([]any) {
			step := each.([]any)
			specs = append(specs, must(xformd.EncodeSpec(step[0].(string), step[1].(object))))
		}
		timeoutMs := int64(-1)
		if given, isGiven := request["timeout_ms"].(float64); isGiven {
			timeoutMs = int64(given)
		}
		poem := bytesOf(request["poem"].(string))
		framed := xformd.EncodeRequest(int64(request["id"].(float64)), strings.Join(specs, "+"), poem, timeoutMs, "")
		return equal(inside(framed), text)
	}
	match := hasSpec.FindStringSubmatch(text)
	if match == nil || vector["error"] != "bad-request" {
		return errSkipped
	}
	_, err := xformd.EncodeSpec(match[1], nil)
	return equal(string(xformd.CodeOf(err)), vector["error"])
}

func receives(vector object, _ split) error {
	read, err := xformd.DecodeReply(bytesOf(vector["string"].(string)))
	if vector["error"] != nil || err != nil {
		return equal(string(xformd.CodeOf(err)), vector["error"])
	}
	found := object{"id": float64(read.ID)}
	if read.Err == nil {
		found["poem"] = latin1(read.Poem)
		return equal(found, vector["reply"])
	}
	found["code"], found["message"] = string(read.Err.Code), read.Err.Message
	if read.Err.RetryAfterMs >= 0 {
		found["retry_after_ms"] = float64(read.Err.RetryAfterMs)
	}
	return equal(found, vector["refusal"])
}

func plays(vector object, split split) error {
	now := time.Unix(100, 0)
	var session *xformd.Session
	requests := map[float64]*xformd.Request{}
	sent, outcomes := "", []any{}
	collect := func() {
		for _, each := range session.Output() {
			sent += latin1(each)
		}
		for _, each := range session.Outcomes() {
			var found []any
			switch {
			case each.Request == nil && each.Err == nil:
				found = []any{"opening", "hello"}
			case each.Request == nil:
				found = []any{"opening", strings.Replace(string(each.Err.Code), "refused", "classic", 1)}
			case each.NotSent:
				found = []any{float64(each.Request.ID), "not-sent"}
			case each.Err != nil:
				found = []any{float64(each.Request.ID), string(each.Err.Code)}
			default:
				found = []any{float64(each.Request.ID), "ok", latin1(each.Poem)}
			}
			outcomes = append(outcomes, found)
		}
	}
	act := map[string]func(what any) error{
		"connect": func(what any) error {
			token, _ := what.(object)["token"].(string)
			session = xformd.NewSession("there", 1_000, token)
			session.Open()
			return nil
		},
		"request": func(what any) error {
			words := what.([]any)
			spec := must(xformd.EncodeSpec(words[0].(string), nil))
			request := session.Request(now, spec, bytesOf(words[1].(string)), time.Time{}, "")
			requests[float64(request.ID)] = request
			return nil
		},
		"cancel": func(what any) error { session.Cancel(requests[what.(float64)], now); return nil },
		"receives": func(what any) error {
			for _, piece := range split.of(bytesOf(what.(string))) {
				session.Receive(piece, now)
			}
			return nil
		},
		"ends": func(what any) error { session.Lose("", what == "closed"); return nil },
		"wait_s": func(what any) error {
			now = now.Add(time.Duration(what.(float64) * float64(time.Second)))
			for !session.CheckAt.IsZero() && !session.CheckAt.After(now) {
				session.Check(now)
			}
			return nil
		},
		"sends": func(what any) error {
			collect()
			found := sent
			sent = ""
			return equal(found, what)
		},
		"outcome": func(what any) error {
			collect()
			if len(outcomes) == 0 {
				return fmt.Errorf("nothing instead of %v", what)
			}
			found := outcomes[0]
			outcomes = outcomes[1:]
			return equal(found, what)
		},
		"close":  func(any) error { session.Close(); return nil },
		"closes": func(any) error { return equal([]bool{session.IsFinished(), session.IsAborted}, []bool{true, false}) },
		"aborts": func(any) error { return equal(session.IsAborted, true) },
	}
	for _, step := range vector["steps"].([]any) {
		for name, what := range step.(object) {
			if err := act[name](what); err != nil {
				return err
			}
		}
	}
	collect()
	return equal([]any{sent, outcomes}, []any{"", []any{}})
}

type order struct {
	Act, Client, Name, Address, Ca, Cert, Token, Spec, Poem string

	ID, Target     int
	Bytes          *string
	Options        xformd.Options
	TimeoutMs      float64
	MaxResultBytes int64
}

func drive() {
	clients := map[string]*xformd.Client{}
	stops := map[int]context.CancelFunc{}
	var mutex sync.Mutex
	say := func(id int, result object, err error) {
		mutex.Lock()
		defer mutex.Unlock()
		if err != nil {
			result = object{"error": describe(err)}
		}
		result["id"] = id
		must(0, json.NewEncoder(os.Stdout).Encode(result))
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var given order
		must(0, json.Unmarshal(lines.Bytes(), &given))
		ctx := context.Background()
		if given.TimeoutMs > 0 {
			ctx, _ = context.WithTimeout(ctx, time.Duration(given.TimeoutMs*float64(time.Millisecond))) //nolint
		}
		ctx, stops[given.ID] = context.WithCancel(ctx)
		client := clients[given.Client]
		switch given.Act {
		case "client":
			config := xformd.Config{Token: given.Token, Name: given.Name, MaxResultBytes: given.MaxResultBytes}
			if given.Ca != "" {
				config.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
				config.TLS.RootCAs.AppendCertsFromPEM(must(os.ReadFile(given.Ca)))
			}
			if given.Cert != "" {
				config.TLS.Certificates = []tls.Certificate{must(tls.LoadX509KeyPair(given.Cert, given.Cert))}
			}
			made, err := xformd.New(given.Address, config)
			clients[given.Client] = made
			say(given.ID, object{}, err)
		case "xform":
			go func() {
				if given.Bytes != nil {
					result, err := client.XformBytes(ctx, given.Spec, bytesOf(*given.Bytes), given.Options)
					say(given.ID, object{"bytes": latin1(result)}, err)
					return
				}
				result, err := client.Xform(ctx, given.Spec, given.Poem, given.Options)
				say(given.ID, object{"text": result}, err)
			}()
		case "cancel":
			stops[given.Target]()
			say(given.ID, object{}, nil)
		case "list":
			go func() {
				listing, err := client.List(ctx)
				if err != nil {
					say(given.ID, nil, err)
					return
				}
				var names []string
				for _, each := range listing.Transforms {
					names = append(names, each.Name)
				}
				say(given.ID, object{"text": strings.Join(names, ",")}, nil)
			}()
		case "ping":
			go func() {
				said, err := client.Ping(ctx)
				say(given.ID, object{"text": said}, err)
			}()
		case "close":
			say(given.ID, object{}, client.Close())
		}
	}
}

func describe(err error) object {
	var found *xformd.Error
	if !errors.As(err, &found) {
		return object{"code": "?", "message": err.Error()}
	}
	said := object{"code": found.Code, "message": found.Message, "retryable": found.Retryable}
	if found.RetryAfterMs >= 0 {
		said["retryAfterMs"] = found.RetryAfterMs
	}
	if (errors.Is(err, context.Canceled) && found.Code != xformd.Cancelled) || errors.Is(err, context.DeadlineExceeded) != (found.Code == xformd.Timeout) {
		panic("a context's error that is none")
	}
	return said
}
