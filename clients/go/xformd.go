// Package xformd is a client of xformd's session dialect. It is one file without dependencies: copy it.
//
//	client, err := xformd.New("127.0.0.1:11000", xformd.Config{})
//	text, err := client.Xform(ctx, "wrap", "one two", xformd.Options{"width": 1.5})
//
// A Session is the dialect without I/O; a Client owns the connection. Invariant: a request that has been written is
// never sent again, unless the server says that it has not begun.
package xformd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxSpec         = 8_192
	maxSteps        = 32
	maxHeadBytes    = maxSpec + 1_024
	maxID           = 1<<53 - 1
	maxWaitMs       = 24 * 60 * 60 * 1_000 // nothing waits for longer because a peer says so
	maxListingBytes = 4 << 20
	maxValues       = 250_000
	maxRows         = 10_000
	maxDepth        = 16
	maxMessage      = 1_000

	silence             = 2 * time.Second // how long a server that owes an answer may be silent until it is asked whether it is there
	doubt               = time.Second     // from then on, until new requests avoid the connection
	giveUp              = 2 * time.Second // and until it is given up
	slowestUploadPerSec = 50_000          // bytes: a question waits behind what was written before it, at worst at this speed

	connectTimeout = 5 * time.Second
	openingTimeout = 5 * time.Second
	firstDelay     = 100 * time.Millisecond // after a failure to connect; twice as long after each further one
	longestDelay   = 2500 * time.Millisecond

	// DefaultMaxResultBytes is the longest result that a client accepts unless its Config says otherwise.
	DefaultMaxResultBytes = 10 << 20

	nameRule = "a-z, then up to 63 of a-z 0-9 - _"
)

var (
	isName        = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`).MatchString
	isTraceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`).MatchString
)

// Code names an error, as in xformd's table of errors.
type Code string

// The table of errors. The last three are never on the wire.
const (
	BadFrame           Code = "bad-frame"
	BadRequest         Code = "bad-request"
	BadOptions         Code = "bad-options"
	NoSuchTransform    Code = "no-such-transform"
	AmbiguousTransform Code = "ambiguous-transform"
	Gibberish          Code = "gibberish"
	TooLarge           Code = "too-large"
	TransformFailed    Code = "transform-failed"
	TransformDied      Code = "transform-died"
	Timeout            Code = "timeout"
	Busy               Code = "busy"
	Unavailable        Code = "unavailable"
	Cancelled          Code = "cancelled"
	ShuttingDown       Code = "shutting-down"
	Unauthorized       Code = "unauthorized"
	Forbidden          Code = "forbidden"
	Internal           Code = "internal"

	ConnectionFailed Code = "connection-failed"
	ConnectionLost   Code = "connection-lost"
	Refused          Code = "refused"
)

var sentCodes = map[Code]bool{ // by a server
	BadFrame: true, BadRequest: true, BadOptions: true, NoSuchTransform: true, AmbiguousTransform: true, Gibberish: true,
	TooLarge: true, TransformFailed: true, TransformDied: true, Timeout: true, Busy: true, Unavailable: true,
	Cancelled: true, ShuttingDown: true, Unauthorized: true, Forbidden: true, Internal: true,
}

var retryable = map[Code]bool{
	Timeout: true, Busy: true, Unavailable: true, ShuttingDown: true, ConnectionFailed: true, ConnectionLost: true,
}

// Error is every error of a request. One with the code Timeout is a context.DeadlineExceeded for errors.Is, one with the
// code Cancelled a context.Canceled.
type Error struct {
	Code         Code
	Message      string // one line for a person: what is wrong and what to do
	Retryable    bool   // whether the same request may succeed later
	RetryAfterMs int64  // how long to wait before another try; -1 if the server named no time
	cause        error
}

func newError(code Code, format string, values ...any) *Error {
	return &Error{code, oneLine(fmt.Sprintf(format, values...)), retryable[code], -1, nil}
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Code, e.Message) }

// Unwrap returns what caused it, if anything did on this side.
func (e *Error) Unwrap() error { return e.cause }

// Is says whether it is the error of a context.
func (e *Error) Is(target error) bool {
	return target == context.DeadlineExceeded && e.Code == Timeout || target == context.Canceled && e.Code == Cancelled
}

// CodeOf returns the code of an error; "" if it is not one of this package.
func CodeOf(err error) Code {
	var found *Error
	if errors.As(err, &found) {
		return found.Code
	}
	return ""
}

func (e *Error) copy() *Error {
	copied := *e
	return &copied
}

// oneLine makes one printable line of a text that may quote a hostile peer.
func oneLine(text string) string {
	line := []rune(strings.Join(strings.Fields(first(text, 4*maxMessage)), " "))
	for place, character := range line {
		if !unicode.IsPrint(character) {
			line[place] = unicode.ReplacementChar
		}
	}
	if len(line) <= maxMessage {
		return string(line)
	}
	return string(line[:maxMessage-1]) + "…"
}

func first(text string, count int) string {
	if len(text) > count {
		return text[:count]
	}
	return text
}

// Netstrings.

func encodeNetstring(head string, body []byte) []byte {
	framed := make([]byte, 0, len(head)+len(body)+24)
	framed = strconv.AppendInt(framed, int64(len(head)+len(body)), 10)
	framed = append(append(append(framed, ':'), head...), body...)
	return append(framed, ',')
}

// Decoder decodes a stream of netstrings strictly, piece by piece; nothing is decoded after an error.
type Decoder struct {
	Violation string // bad_length, bad_terminator or too_long; "" while there is none
	Offset    int64  // of the violation, from the stream's start

	maxLength int64
	offset    int64
	length    int64  // of the string that is being read; -1 before its first digit
	body      []byte // of the string being read
	isBody    bool
	err       *Error
}

// NewDecoder returns a decoder of strings up to a length.
func NewDecoder(maxLength int64) *Decoder { return &Decoder{maxLength: maxLength, length: -1} }

// IsInside says whether a string has begun and is not complete.
func (d *Decoder) IsInside() bool { return d.length >= 0 }

// Decode returns the strings that are complete. After a violation these are what came before.
func (d *Decoder) Decode(data []byte) [][]byte {
	var found [][]byte
	for place := 0; place < len(data) && d.err == nil; {
		missing := d.length - int64(len(d.body))
		switch {
		case !d.isBody:
			d.readLength(data[place], int64(place))
			place++
		case missing > 0: // a length costs no memory: the body grows as it comes
			if rest := int64(len(data) - place); rest < missing {
				missing = rest
			}
			d.body = append(d.body, data[place:place+int(missing)]...)
			place += int(missing)
		case data[place] != ',':
			d.fail("bad_terminator", int64(place), "a netstring must end with a comma")
		default:
			found = append(found, d.body)
			d.length, d.body, d.isBody = -1, nil, false
			place++
		}
	}
	d.offset += int64(len(data))
	return found
}

func (d *Decoder) readLength(digit byte, place int64) {
	switch {
	case digit == ':' && d.length >= 0:
		d.isBody = true
	case digit < '0' || digit > '9':
		d.fail("bad_length", place, "a netstring starts with its length and a colon")
	case d.length == 0:
		d.fail("bad_length", place, "a netstring's length has no leading zeros")
	default:
		if d.length < 0 {
			d.length = 0
		}
		d.length = d.length*10 + int64(digit-'0')
		if d.length > d.maxLength {
			d.fail("too_long", place, fmt.Sprintf("a netstring of %d bytes or more; the limit is %d bytes", d.length, d.maxLength))
		}
	}
}

func (d *Decoder) fail(violation string, place int64, message string) {
	d.Violation, d.Offset = violation, d.offset+place
	code := BadFrame
	if violation == "too_long" {
		code = TooLarge
	}
	d.err = newError(code, "%s (byte %d of the stream)", message, d.Offset)
}

// Specs.

// Options are those of one transform. A value is a string, a number, a bool, a time.Time, or a slice of them; one that
// is nil counts as left out.
type Options map[string]any

type step struct {
	name    string
	options map[string]string
}

// EncodeSpec returns the wire form of a spec and of more options for it. In the spec, a value may have any character
// but '+' and ','.
func EncodeSpec(transform string, options Options) (string, error) {
	steps, err := parseSpec(transform)
	if err != nil {
		return "", err
	}
	for name, value := range options {
		text, isGiven, err := optionText(name, value)
		if err != nil {
			return "", err
		}
		if isGiven && len(steps) > 1 {
			return "", newError(BadRequest, "with several steps, write options into the spec: %s:option=value+...", steps[0].name)
		}
		if isGiven {
			steps[0].options[name] = text
		}
	}
	texts := make([]string, len(steps))
	for place, each := range steps {
		texts[place] = each.encode()
	}
	spec := strings.Join(texts, "+")
	if len(spec) > maxSpec {
		return "", tooLong(spec)
	}
	return spec, nil
}

func (s step) encode() string {
	texts := make([]string, 0, len(s.options))
	for key, value := range s.options {
		texts = append(texts, key+"="+percentEncode(value))
	}
	if len(texts) == 0 {
		return s.name
	}
	sort.Slice(texts, func(one, other int) bool { // by key: '=' would not sort where a shorter key ends
		return strings.SplitN(texts[one], "=", 2)[0] < strings.SplitN(texts[other], "=", 2)[0]
	})
	return s.name + ":" + strings.Join(texts, ",")
}

// percentEncode encodes every byte but A-Z a-z 0-9 - _ ~. A '.' above all: unescaped, it would end the spec, and no error
// tells.
func percentEncode(value string) string {
	var text strings.Builder
	for place := 0; place < len(value); place++ {
		each := value[place]
		if 'A' <= each && each <= 'Z' || 'a' <= each && each <= 'z' || '0' <= each && each <= '9' || strings.IndexByte("-_~", each) >= 0 {
			text.WriteByte(each)
		} else {
			fmt.Fprintf(&text, "%%%02X", each)
		}
	}
	return text.String()
}

func parseSpec(text string) ([]step, error) {
	if utf8.RuneCountInString(text) > maxSpec {
		return nil, tooLong(text)
	}
	var steps []step
	place := 0
	for _, part := range strings.Split(text, "+") {
		if len(steps) == maxSteps {
			return nil, badSpec(text, place, "a spec may have at most %d steps", maxSteps)
		}
		parsed, err := parseStep(text, part, place)
		if err != nil {
			return nil, err
		}
		steps = append(steps, parsed)
		place += len(part) + 1
	}
	return steps, nil
}

func parseStep(text, part string, place int) (step, error) {
	name, rest, hasOptions := strings.Cut(part, ":")
	if !isName(name) {
		return step{}, badSpec(text, place, "'%s' is not a valid transform name: use %s", first(name, 80), nameRule)
	}
	parsed := step{name, map[string]string{}}
	if !hasOptions {
		return parsed, nil
	}
	place += len(name) + 1
	for _, option := range strings.Split(rest, ",") {
		key, value, hasValue := strings.Cut(option, "=")
		_, isTwice := parsed.options[key]
		switch {
		case !isName(key):
			return step{}, badSpec(text, place, "'%s' is not a valid option name: use %s", first(key, 80), nameRule)
		case !hasValue:
			return step{}, badSpec(text, place+len(key), "option '%s' needs a value: %s=...", key, key)
		case isTwice:
			return step{}, badSpec(text, place, "option '%s' is given twice", key)
		}
		decoded, err := percentDecode(text, value, place+len(key)+1)
		if err != nil {
			return step{}, err
		}
		parsed.options[key] = decoded
		place += len(option) + 1
	}
	return parsed, nil
}

func percentDecode(text, value string, place int) (string, error) {
	decoded, err := url.PathUnescape(value)
	if err != nil {
		for at := strings.IndexByte(value, '%'); ; at++ {
			if value[at] == '%' && !isEncoded(value[at:]) {
				rule := "'%' must be followed by two hexadecimal digits (write '%25' for the character itself)"
				return "", badSpec(text, place+at, "%s", rule)
			}
		}
	}
	if !utf8.ValidString(decoded) {
		return "", badSpec(text, place, "the value is not valid UTF-8")
	}
	return decoded, nil
}

var isEncoded = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`).MatchString

func badSpec(text string, place int, format string, values ...any) *Error {
	return newError(BadRequest, "spec, character %d: %s", utf8.RuneCountInString(text[:place])+1, fmt.Sprintf(format, values...))
}

func tooLong(spec string) *Error {
	count := utf8.RuneCountInString(spec)
	return newError(BadRequest, "spec, character %d: a spec may have at most %d characters; this one has %d", maxSpec+1, maxSpec, count)
}

func optionText(name string, value any) (text string, isGiven bool, err error) {
	if !isName(name) {
		return "", false, newError(BadRequest, "'%s' is not a valid option name: use %s", name, nameRule)
	}
	unknown := newError(BadRequest, "option '%s' takes a string, number, bool, time.Time, or a slice of them, not %T", name, value)
	switch known := value.(type) {
	case nil:
		return "", false, nil
	case []byte:
		return "", false, unknown
	case time.Time:
		return known.Format(time.RFC3339Nano), true, nil
	}
	found := reflect.ValueOf(value)
	switch found.Kind() {
	case reflect.String:
		text = found.String()
	case reflect.Bool:
		text = strconv.FormatBool(found.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		text = strconv.FormatInt(found.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		text = strconv.FormatUint(found.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		text = strconv.FormatFloat(found.Float(), 'g', -1, found.Type().Bits())
	case reflect.Slice:
		text, err = listText(name, found)
	default:
		err = unknown
	}
	if err == nil && !utf8.ValidString(text) {
		err = newError(BadRequest, "the value of option '%s' is not valid UTF-8", name)
	}
	return text, true, err
}

func listText(name string, list reflect.Value) (string, error) {
	items := make([]string, list.Len())
	for place := range items {
		item, isGiven, err := optionText(name, list.Index(place).Interface())
		if err != nil {
			return "", err
		}
		if !isGiven {
			return "", newError(BadRequest, "the list of option '%s' has a nil", name)
		}
		items[place] = item
	}
	text := strings.Join(items, ",")
	if strings.HasPrefix(text, "[") || len(items) == 1 && text == "" || strings.Count(text, ",") >= len(items) && len(items) > 0 {
		encoded, err := json.Marshal(items)
		return string(encoded), err
	}
	return text, nil
}

// Messages.

// EncodeRequest frames a request. The head's '.' is its first: what is in the spec is percent-encoded. A timeout of less
// than 0 is none.
func EncodeRequest(id int64, spec string, poem []byte, timeoutMs int64, traceparent string) []byte {
	head := fmt.Sprintf("%d %s", id, spec)
	if timeoutMs > maxWaitMs {
		timeoutMs = maxWaitMs
	}
	if timeoutMs >= 0 {
		head += fmt.Sprintf(" timeout=%d", timeoutMs)
	}
	if traceparent != "" {
		head += " traceparent=" + traceparent
	}
	return encodeNetstring(head+".", poem)
}

// EncodeControl frames a control message: list, ping, cancel, whose id is that of its request, or auth, which has a
// token.
func EncodeControl(id int64, control, token string) []byte {
	return encodeNetstring(fmt.Sprintf("%d !%s.", id, control), []byte(token))
}

// Hello is how a server introduces itself.
type Hello struct {
	Server          string `json:"server"`
	MaxRequestBytes int64  `json:"max_request_bytes"`
	MaxInFlight     int64  `json:"max_in_flight"`
}

func decodeHello(text []byte) (*Hello, error) {
	if len(text) > maxHeadBytes {
		text = text[:maxHeadBytes]
	}
	opening, fields, _ := bytes.Cut(text, []byte(" "))
	hello := &Hello{}
	if err := json.Unmarshal(fields, hello); err != nil {
		return nil, newError(BadFrame, "the server's first message is not the hello of a session: %s", err)
	}
	isLimit := func(value int64) bool { return 1 <= value && value <= maxID }
	if string(opening) != "xformd/2" || !isLimit(hello.MaxRequestBytes) || !isLimit(hello.MaxInFlight) {
		return nil, newError(BadFrame, "the server's first message is not a hello of this version of the protocol")
	}
	hello.Server = oneLine(hello.Server)
	return hello, nil
}

// Reply is a server's message after its hello; Err is what the server says, or nil.
type Reply struct {
	ID   int64
	Poem []byte
	Err  *Error
}

// DecodeReply decodes the inside of a netstring. The error is BadFrame if it is no reply.
func DecodeReply(text []byte) (*Reply, error) {
	dot := bytes.IndexByte(text[:least(len(text), maxHeadBytes+1)], '.')
	head := string(text[:least(len(text), 80)])
	if dot >= 0 {
		head = string(text[:dot])
	}
	words := strings.Split(head, " ")
	id, isNumber := wholeNumber(words[0])
	if !isNumber {
		return nil, newError(BadFrame, "'%s' is not an id: a session's messages start with an id from 1 to 2^53-1", first(words[0], 80))
	}
	if dot < 0 || len(words) < 2 {
		return nil, newError(BadFrame, "a server's message is <id> <code>.<text>")
	}
	retryAfterMs, err := readRetryAfter(words[2:])
	if err != nil {
		return nil, err
	}
	code, body := Code(words[1]), text[dot+1:]
	if code == "ok" && id != 0 {
		return &Reply{ID: id, Poem: body}, nil
	}
	message := strings.ToValidUTF8(string(body), "\ufffd")
	if !sentCodes[code] {
		code, message = Internal, fmt.Sprintf("%s: %s", oneLine(words[1]), message)
	}
	said := newError(code, "%s", message)
	said.RetryAfterMs = retryAfterMs
	return &Reply{ID: id, Err: said}, nil
}

func least(one, other int) int {
	if one < other {
		return one
	}
	return other
}

func wholeNumber(digits string) (int64, bool) {
	value, err := strconv.ParseUint(digits, 10, 63)
	isPlain := err == nil && (digits == "0" || digits[0] != '0' && digits[0] != '+')
	return int64(value), isPlain && value <= maxID
}

// readRetryAfter checks the attributes of a reply, and returns the one that counts; -1 if it is not there.
func readRetryAfter(words []string) (int64, error) {
	seen := map[string]bool{}
	retryAfterMs := int64(-1)
	for _, word := range words {
		key, value, hasValue := strings.Cut(word, "=")
		if key == "" || !hasValue {
			return 0, newError(BadFrame, "'%s' is not an attribute: write <key>=<value>", first(word, 80))
		}
		if seen[key] {
			return 0, newError(BadFrame, "the attribute '%s' is given twice", first(key, 80))
		}
		seen[key] = true
		if key != "retry-after" {
			continue
		}
		number, isNumber := wholeNumber(value)
		if !isNumber {
			return 0, newError(BadFrame, "the attribute 'retry-after' takes a whole number of milliseconds, not '%s'", first(value, 80))
		}
		retryAfterMs = number
		if number > maxWaitMs {
			retryAfterMs = maxWaitMs
		}
	}
	return retryAfterMs, nil
}

// Listing is what a server offers. Raw has all that it says.
type Listing struct {
	Transforms []Transform     `json:"transforms"`
	Raw        json.RawMessage `json:"-"`
}

// Transform is one of a Listing.
type Transform struct {
	Name         string   `json:"name"`
	Summary      string   `json:"summary"`
	Kind         string   `json:"kind"`
	ResultKind   string   `json:"result_kind"`
	Options      []Option `json:"options"`
	Distribution string   `json:"distribution"`
	Version      string   `json:"version"`
}

// Option is one that a Transform takes.
type Option struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Required    bool   `json:"required"`
	Default     any    `json:"default"`
	Takes       string `json:"takes"`
	Description string `json:"description"`
}

func decodeListing(answer []byte) (*Listing, error) {
	listing := &Listing{Raw: answer}
	if err := checkListing(answer, listing); err != nil {
		return nil, newError(BadFrame, "the server's list of transforms is malformed: %s", err)
	}
	return listing, nil
}

func checkListing(answer []byte, listing *Listing) error {
	values := bytes.Count(answer, []byte("[")) + bytes.Count(answer, []byte("{")) + bytes.Count(answer, []byte(","))
	if len(answer) > maxListingBytes || values > maxValues {
		return errors.New("it has more than 4 MiB or 250,000 values")
	}
	var whole map[string]any
	if err := json.Unmarshal(answer, &whole); err != nil {
		return err
	}
	for _, key := range []string{"transforms", "plugins", "conflicts"} {
		if rows, isList := whole[key].([]any); !isList || len(rows) > maxRows {
			return fmt.Errorf("'%s' is not a list of at most 10,000", key)
		}
	}
	if isDeeper(whole, maxDepth) {
		return errors.New("it is nested too deeply")
	}
	if err := json.Unmarshal(answer, listing); err != nil {
		return err
	}
	for _, each := range listing.Transforms {
		if !isName(each.Name) {
			return errors.New("a transform has an invalid name")
		}
	}
	return nil
}

func isDeeper(value any, levels int) bool {
	var inside []any
	switch known := value.(type) {
	case map[string]any:
		for _, each := range known {
			inside = append(inside, each)
		}
	case []any:
		inside = known
	default:
		return false
	}
	if levels == 0 {
		return true
	}
	for _, each := range inside {
		if isDeeper(each, levels-1) {
			return true
		}
	}
	return false
}

// A session, without I/O.

// Outcome is what came of a request, or of the opening, whose Request is nil.
type Outcome struct {
	Request      *Request
	Poem         []byte
	Err          *Error
	NotSent      bool // the server is known not to have run the request
	MayReconnect bool // a new connection to the same server may help
}

// Request is one that has no answer yet.
type Request struct {
	ID int64

	encode    func(now time.Time) []byte
	isControl bool
	isAuth    bool
	done      chan Outcome
}

// Session is one session. After each call its owner writes Output, hands on Outcomes, and closes if IsAborted or
// IsFinished; at CheckAt, if that is not zero, it calls Check. It is not for several goroutines at once.
type Session struct {
	Hello     *Hello
	IsAborted bool
	CheckAt   time.Time

	address        string
	maxResultBytes int64
	decoder        *Decoder
	token          string // until the server knows it
	isOpening      bool
	lastID         int64
	answers        int64
	waiting        []*Request
	inFlight       map[int64]*Request
	cancelled      map[int64]bool // cancelled, but the server has not said so yet
	goodbye        *Error
	hasReceived    bool
	askedAt        time.Time // it has sent nothing since then
	isGivingUp     bool
	unheard        int64 // bytes that were written since it was heard last
	output         [][]byte
	outcomes       []Outcome
}

// NewSession returns a session with the server of this name.
func NewSession(address string, maxResultBytes int64, token string) *Session {
	return &Session{
		address: address, maxResultBytes: maxResultBytes, decoder: NewDecoder(maxResultBytes + maxHeadBytes), token: token,
		isOpening: true, inFlight: map[int64]*Request{}, cancelled: map[int64]bool{},
	}
}

// IsOpen says whether it accepts new requests.
func (s *Session) IsOpen(now time.Time) bool {
	return s.Hello != nil && s.goodbye == nil && !s.IsAborted && !s.isUnanswered(now, doubt)
}

// IsFinished says whether the connection is to be closed once all is sent: nothing new may be asked, all is answered.
func (s *Session) IsFinished() bool {
	return s.goodbye != nil && len(s.inFlight) == 0 && len(s.waiting) == 0
}

// Output returns what is to be written now.
func (s *Session) Output() [][]byte {
	output := s.output
	s.output = nil
	return output
}

// Outcomes returns what has come of requests and of the opening since the last call.
func (s *Session) Outcomes() []Outcome {
	outcomes := s.outcomes
	s.outcomes = nil
	return outcomes
}

// Open begins, once there is a connection.
func (s *Session) Open() {
	s.output = append(s.output, encodeNetstring("xformd/2", nil))
	if s.token != "" {
		s.lastID++
		s.inFlight[s.lastID] = &Request{ID: s.lastID, isAuth: true}
		s.output = append(s.output, EncodeControl(s.lastID, "auth", s.token))
	}
}

// Request sends a poem; its caller stops waiting at endsAt, if that is not zero.
func (s *Session) Request(now time.Time, spec string, poem []byte, endsAt time.Time, traceparent string) *Request {
	s.lastID++
	request := &Request{ID: s.lastID, done: make(chan Outcome, 1)}
	request.encode = func(now time.Time) []byte {
		timeoutMs := int64(-1)
		if !endsAt.IsZero() {
			timeoutMs = int64(math.Round(math.Max(0, endsAt.Sub(now).Seconds()*1000)))
		}
		return EncodeRequest(request.ID, spec, poem, timeoutMs, traceparent)
	}
	s.enqueue(request, now)
	return request
}

// Control sends "list" or "ping".
func (s *Session) Control(now time.Time, control string) *Request {
	s.lastID++
	request := &Request{ID: s.lastID, isControl: true, done: make(chan Outcome, 1)}
	request.encode = func(time.Time) []byte { return EncodeControl(request.ID, control, "") }
	s.enqueue(request, now)
	return request
}

// Cancel gives a request up, at the server too. It has no outcome.
func (s *Session) Cancel(request *Request, now time.Time) {
	for place, each := range s.waiting {
		if each == request {
			s.waiting = append(s.waiting[:place:place], s.waiting[place+1:]...)
			return
		}
	}
	if s.inFlight[request.ID] != nil && !s.IsAborted {
		delete(s.inFlight, request.ID)
		s.cancelled[request.ID] = true
		s.ask(EncodeControl(request.ID, "cancel", ""), now)
	}
}

// Close accepts no new requests; the session is finished when those in flight are answered.
func (s *Session) Close() {
	if s.goodbye == nil {
		s.goodbye = newError(ShuttingDown, "this client is closing")
	}
}

// Receive takes what has arrived.
func (s *Session) Receive(data []byte, now time.Time) {
	if s.IsAborted {
		return
	}
	s.hasReceived, s.askedAt, s.isGivingUp, s.unheard = true, time.Time{}, false, 0
	s.CheckAt = now.Add(silence)
	for _, each := range s.decoder.Decode(data) {
		if err := s.handle(each); err != nil {
			s.breakOff(err)
			return
		}
	}
	if s.decoder.err != nil {
		s.breakOff(s.decoder.err)
		return
	}
	s.writeWaiting(now)
}

// Lose takes the connection's end. It is clean if the server closed it in order: only that is an answer.
func (s *Session) Lose(reason string, isClean bool) {
	s.CheckAt = time.Time{}
	said := ""
	if s.goodbye != nil {
		said = ": " + s.goodbye.Message
	}
	if reason == "" && isClean {
		reason = "the server closed it"
	} else if reason == "" {
		reason = "it was broken off"
	}
	lost := newError(ConnectionLost, "the connection to %s is lost (%s)%s", s.address, reason, said)
	if isClean && !s.hasReceived {
		s.failOpening(newError(Refused, "%s speaks only the classic dialect: this client needs sessions", s.address))
	} else {
		s.failOpening(lost)
	}
	s.failAll(lost)
	s.cancelled = map[int64]bool{}
	s.IsAborted = true
}

// Check asks a server that owes an answer and is silent whether it is there; it gives it up if that has no answer.
func (s *Session) Check(now time.Time) {
	s.CheckAt = time.Time{}
	switch {
	case s.isGivingUp:
		s.failAll(newError(ConnectionLost, "%s has stopped answering, even a ping: it may be gone", s.address))
		s.IsAborted = true
	case s.isUnanswered(now, giveUp):
		s.isGivingUp = true
		s.CheckAt = now // what came while this program did something else is read first
	case !s.askedAt.IsZero():
		s.CheckAt = now.Add(giveUp)
	case len(s.inFlight)+len(s.cancelled) > 0:
		s.lastID++
		s.ask(EncodeControl(s.lastID, "ping", ""), now)
	}
}

func (s *Session) enqueue(request *Request, now time.Time) {
	if s.goodbye != nil || s.IsAborted {
		err := newError(ShuttingDown, "this client is closing")
		if s.goodbye != nil {
			err = s.goodbye.copy()
		}
		s.outcomes = append(s.outcomes, Outcome{Request: request, Err: err, NotSent: true, MayReconnect: true})
		return
	}
	s.waiting = append(s.waiting, request)
	s.writeWaiting(now)
}

func (s *Session) writeWaiting(now time.Time) {
	// A session that was closed here has accepted what waits; where the server ends it, nothing waits any more.
	isReady := s.Hello != nil && !s.IsAborted && !s.isUnanswered(now, doubt)
	for isReady && len(s.waiting) > 0 && int64(len(s.inFlight)+len(s.cancelled)) < s.Hello.MaxInFlight {
		request := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.write(request, now)
	}
}

func (s *Session) write(request *Request, now time.Time) {
	data := request.encode(now)
	if size := int64(len(data) - bytes.IndexByte(data, ':') - 2); size > s.Hello.MaxRequestBytes { // without its frame
		err := newError(TooLarge, "the request has %d bytes; the limit of %s is %d bytes", size, s.address, s.Hello.MaxRequestBytes)
		s.outcomes = append(s.outcomes, Outcome{Request: request, Err: err})
		return
	}
	if len(s.inFlight)+len(s.cancelled) == 0 {
		s.CheckAt = now.Add(silence)
	}
	s.inFlight[request.ID] = request
	s.unheard += int64(len(data))
	s.output = append(s.output, data)
}

func (s *Session) handle(text []byte) *Error {
	if s.Hello == nil {
		hello, err := decodeHello(text)
		if err != nil {
			return err.(*Error)
		}
		s.Hello = hello
		s.openIfKnown()
		return nil
	}
	reply, err := DecodeReply(text)
	if err != nil {
		return err.(*Error)
	}
	s.answers++
	if s.answers > s.lastID+1 { // one for each id, and one for the connection
		return newError(BadFrame, "more answers than requests")
	}
	request := s.inFlight[reply.ID]
	delete(s.inFlight, reply.ID)
	delete(s.cancelled, reply.ID)
	if reply.Err != nil && (reply.ID == 0 || request != nil && reply.Err.Code == ShuttingDown) {
		s.goodbye = reply.Err
		s.failWaiting(reply.Err)
	}
	if request == nil {
		return nil
	}
	outcome := Outcome{Request: request, Poem: reply.Poem, Err: reply.Err}
	if reply.Err != nil && reply.Err.RetryAfterMs >= 0 && (reply.Err.Code == ShuttingDown || reply.Err.Code == Busy) {
		// Only with a time to come back has the server certainly not begun.
		outcome.NotSent, outcome.MayReconnect = true, reply.Err.Code == ShuttingDown
	}
	if size := int64(len(reply.Poem)); size > s.maxResultBytes && !request.isControl {
		outcome.Err = newError(TooLarge, "the result has %d bytes; the limit is %d bytes", size, s.maxResultBytes)
	}
	s.settle(outcome)
	return nil
}

func (s *Session) settle(outcome Outcome) {
	switch {
	case !outcome.Request.isAuth:
		s.outcomes = append(s.outcomes, outcome)
	case outcome.Err == nil || outcome.Err.Code == BadRequest: // an older server knows no such message, and needs no token
		s.token = ""
		s.openIfKnown()
	case s.isOpening:
		s.failOpening(outcome.Err)
		s.IsAborted = true
	}
}

func (s *Session) openIfKnown() {
	if s.token == "" && s.Hello != nil && s.isOpening {
		s.isOpening = false
		s.outcomes = append(s.outcomes, Outcome{})
	}
}

func (s *Session) ask(data []byte, now time.Time) {
	s.output = append(s.output, data)
	if s.askedAt.IsZero() {
		s.askedAt = now
		s.CheckAt = now.Add(giveUp)
	}
}

func (s *Session) isUnanswered(now time.Time, after time.Duration) bool {
	if s.askedAt.IsZero() || s.Hello == nil {
		return false
	}
	// It may not have heard: at its limit it does not read, and an upload is in the way.
	isFull := int64(len(s.inFlight)+len(s.cancelled)) >= s.Hello.MaxInFlight
	upload := time.Duration(s.unheard/(slowestUploadPerSec/1000)) * time.Millisecond
	return !isFull && !now.Before(s.askedAt.Add(after+upload))
}

func (s *Session) breakOff(violation *Error) {
	err := newError(violation.Code, "%s sent an unreadable answer: %s", s.address, violation.Message)
	s.goodbye = err
	s.failOpening(err)
	s.failAll(err)
	s.IsAborted = true
}

func (s *Session) failOpening(err *Error) {
	if s.isOpening {
		s.isOpening = false
		s.outcomes = append(s.outcomes, Outcome{Err: err.copy(), NotSent: true})
	}
}

func (s *Session) failAll(err *Error) {
	if s.goodbye == nil {
		s.goodbye = err
	}
	s.failWaiting(s.goodbye)
	lost := make([]*Request, 0, len(s.inFlight))
	for _, each := range s.inFlight {
		lost = append(lost, each)
	}
	sort.Slice(lost, func(one, other int) bool { return lost[one].ID < lost[other].ID })
	s.inFlight = map[int64]*Request{}
	for _, each := range lost {
		if !each.isAuth {
			s.outcomes = append(s.outcomes, Outcome{Request: each, Err: err.copy()})
		}
	}
}

func (s *Session) failWaiting(err *Error) {
	for _, each := range s.waiting {
		s.outcomes = append(s.outcomes, Outcome{Request: each, Err: err.copy(), NotSent: true, MayReconnect: true})
	}
	s.waiting = nil
}

// The connection.

// link is one connection and its session.
type link struct {
	mutex   sync.Mutex // of all below
	session *Session
	opening chan Outcome
	conn    net.Conn
	wake    chan struct{} // something is to be written, or the end has come
	ended   error         // why nothing can be read any more
	timer   *time.Timer
}

func newLink(conn net.Conn, session *Session) *link {
	made := &link{session: session, opening: make(chan Outcome, 1), conn: conn, wake: make(chan struct{}, 1)}
	made.act(func(session *Session, _ time.Time) { session.Open() })
	go made.read()
	go made.write()
	return made
}

// act does something to the session, and what comes of it.
func (l *link) act(work func(session *Session, now time.Time)) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	work(l.session, time.Now())
	for _, outcome := range l.session.Outcomes() {
		if outcome.Request == nil {
			l.opening <- outcome
		} else {
			outcome.Request.done <- outcome
		}
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	if !l.session.CheckAt.IsZero() {
		l.timer = time.AfterFunc(time.Until(l.session.CheckAt), l.check)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) check() {
	l.act(func(session *Session, now time.Time) {
		if !session.CheckAt.IsZero() && !now.Before(session.CheckAt) {
			session.Check(now)
		}
	})
}

func (l *link) read() {
	buffer := make([]byte, 65_536)
	for {
		count, err := l.conn.Read(buffer)
		if count > 0 {
			l.act(func(session *Session, now time.Time) { session.Receive(buffer[:count], now) })
		}
		if err != nil {
			reason := ""
			if err != io.EOF && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.ErrUnexpectedEOF) {
				reason = words(err)
			}
			l.act(func(session *Session, _ time.Time) {
				l.ended = err
				if !session.IsAborted {
					session.Lose(reason, err == io.EOF)
				}
			})
			return
		}
	}
}

func (l *link) write() {
	defer l.conn.Close()
	for range l.wake {
		l.mutex.Lock()
		output, isAborted := net.Buffers(l.session.Output()), l.session.IsAborted
		l.mutex.Unlock()
		if isAborted {
			return
		}
		if _, err := output.WriteTo(l.conn); err != nil {
			return // the reader will say so
		}
		l.mutex.Lock()
		isFinished := l.session.IsFinished() && len(l.session.output) == 0
		l.mutex.Unlock()
		if isFinished {
			return
		}
	}
}

func (l *link) isOpen() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.session.IsOpen(time.Now())
}

// ask returns the answer to a message; if the context ends before, the request is given up at the server too.
func (l *link) ask(ctx context.Context, send func(session *Session, now time.Time) *Request) (Outcome, error) {
	var request *Request
	l.act(func(session *Session, now time.Time) { request = send(session, now) })
	select {
	case outcome := <-request.done:
		return outcome, nil
	case <-ctx.Done():
		l.act(func(session *Session, now time.Time) { session.Cancel(request, now) })
		return Outcome{}, ctx.Err()
	}
}

// Config is what a Client may be told.
type Config struct {
	TLS            *tls.Config // for TLS to a server on TCP; not needed where the address starts with tls:
	Token          string      // shows the server who this is, where that has an access file
	Name           string      // of the server in messages; by default its address
	MaxResultBytes int64       // the longest result to accept; by default DefaultMaxResultBytes
}

// Client is a client of one server, for any number of goroutines. It connects on the first request, and again on the
// next one after the connection has ended.
type Client struct {
	network, address, host string
	name, token            string
	tls                    *tls.Config
	maxResultBytes         int64

	mutex      sync.Mutex // of all below
	link       *link
	attempt    *attempt
	failures   int
	restsUntil time.Time
	isClosed   bool
}

// attempt is one to connect, for all requests that wait for it.
type attempt struct {
	done chan struct{}
	link *link
	err  *Error
}

// New returns a client of the server at HOST:PORT, tls:HOST:PORT, unix:PATH, a host or a port. It does not connect yet.
func New(address string, config Config) (*Client, error) {
	client := &Client{name: config.Name, token: config.Token, maxResultBytes: config.MaxResultBytes}
	if client.name == "" {
		client.name = address
	}
	if client.maxResultBytes == 0 {
		client.maxResultBytes = DefaultMaxResultBytes
	}
	if path := strings.TrimPrefix(address, "unix:"); path != address && path != "" {
		client.network, client.address = "unix", path
		return client, nil
	}
	host := strings.TrimPrefix(address, "tls:")
	port := "11000"
	if found, given, err := net.SplitHostPort(host); err == nil {
		host, port = found, given
	} else if _, err := strconv.Atoi(host); err == nil {
		host, port = "127.0.0.1", host
	}
	if number, err := strconv.Atoi(port); err != nil || number < 1 || number > 65_535 {
		return nil, fmt.Errorf("server address '%s': a port is 1 to 65535", address)
	}
	host = strings.Trim(host, "[]")
	if host == "" || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return nil, fmt.Errorf("server address '%s': write HOST:PORT, tls:HOST:PORT or unix:/run/xformd.sock", address)
	}
	client.network, client.address = "tcp", net.JoinHostPort(host, port)
	if config.TLS != nil || strings.HasPrefix(address, "tls:") {
		client.tls = config.TLS.Clone()
		if client.tls == nil {
			client.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if client.tls.ServerName == "" {
			client.tls.ServerName = host
		}
	}
	return client, nil
}

// Xform transforms a text. Every error is an *Error. When the context ends, the server is told; its deadline is the
// server's too.
func (c *Client) Xform(ctx context.Context, transform, text string, options Options) (string, error) {
	answer, err := c.XformBytes(ctx, transform, []byte(text), options)
	if err == nil && !utf8.Valid(answer) {
		err = newError(Gibberish, "the result is not UTF-8: send the poem as bytes to get bytes")
	}
	if err != nil {
		return "", err
	}
	return string(answer), nil
}

// XformBytes transforms bytes, or a text into bytes.
func (c *Client) XformBytes(ctx context.Context, transform string, poem []byte, options Options) ([]byte, error) {
	spec, err := EncodeSpec(transform, options)
	if err != nil {
		return nil, err
	}
	endsAt, _ := ctx.Deadline()
	trace, _ := ctx.Value(traceKey{}).(string)
	send := func(session *Session, now time.Time) *Request { return session.Request(now, spec, poem, endsAt, trace) }
	answer, failed := c.ask(ctx, send, false)
	if failed != nil {
		return nil, failed
	}
	return answer, nil
}

type traceKey struct{}

// WithTraceparent returns a context whose requests belong to a W3C trace; a malformed one is ignored.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	if !isTraceparent(traceparent) {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, traceparent)
}

// List returns what the server offers.
func (c *Client) List(ctx context.Context) (*Listing, error) {
	send := func(session *Session, now time.Time) *Request { return session.Control(now, "list") }
	answer, failed := c.ask(ctx, send, true)
	if failed != nil {
		return nil, failed
	}
	return decodeListing(answer)
}

// Ping returns the server's name and version, and what it says of itself.
func (c *Client) Ping(ctx context.Context) (string, error) {
	server := ""
	send := func(session *Session, now time.Time) *Request {
		server = session.Hello.Server
		return session.Control(now, "ping")
	}
	answer, failed := c.ask(ctx, send, true)
	if failed != nil {
		return "", failed
	}
	if said := oneLine(strings.ToValidUTF8(string(answer), "\ufffd")); said != "" {
		return server + ", " + said, nil
	}
	return server, nil
}

// Close takes no more requests and returns at once; the connection closes once those in flight are answered.
func (c *Client) Close() error {
	c.mutex.Lock()
	open := c.link
	c.isClosed = true
	c.mutex.Unlock()
	if open != nil {
		open.act(func(session *Session, _ time.Time) { session.Close() })
	}
	return nil
}

func (c *Client) ask(ctx context.Context, send func(*Session, time.Time) *Request, mayRunTwice bool) ([]byte, *Error) {
	began := time.Now()
	for repeats := 0; ; repeats++ {
		var outcome Outcome
		open, failed, err := c.open(ctx)
		if open != nil {
			outcome, err = open.ask(ctx, send)
		}
		if err != nil {
			return nil, c.ended(ctx, err, began)
		}
		if failed != nil {
			return nil, failed.copy()
		}
		if outcome.Err == nil {
			return outcome.Poem, nil
		}
		isLoss := outcome.Err.Code == ConnectionLost || outcome.Err.Code == ShuttingDown
		if repeats < 2 && (outcome.MayReconnect || mayRunTwice && isLoss && !outcome.NotSent) {
			continue
		}
		if outcome.Err.Code == ConnectionLost && !outcome.NotSent && !mayRunTwice {
			outcome.Err.Message += "; the request may have run: repeat it only if that is harmless"
		}
		return nil, outcome.Err
	}
}

func (c *Client) ended(ctx context.Context, cause error, began time.Time) *Error {
	said := newError(Cancelled, "the caller gave it up")
	if endsAt, hasEnd := ctx.Deadline(); hasEnd && errors.Is(cause, context.DeadlineExceeded) {
		said = newError(Timeout, "no answer from %s within %.2g s", c.name, math.Max(0, endsAt.Sub(began).Seconds()))
	}
	said.cause = cause
	return said
}

// open returns an open link, or why there is none; the last error is that of the context.
func (c *Client) open(ctx context.Context) (*link, *Error, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	c.mutex.Lock()
	if c.isClosed {
		c.mutex.Unlock()
		return nil, newError(ConnectionFailed, "this Client is closed: make a new one"), nil
	}
	if c.link != nil && c.link.isOpen() {
		defer c.mutex.Unlock()
		return c.link, nil, nil
	}
	if c.attempt == nil {
		c.attempt = &attempt{done: make(chan struct{})}
		go c.connect(c.attempt, c.restsUntil)
	}
	current := c.attempt
	c.mutex.Unlock()
	select {
	case <-current.done:
		return current.link, current.err, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (c *Client) connect(current *attempt, at time.Time) {
	time.Sleep(time.Until(at))
	current.link, current.err = c.dial()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.attempt = nil
	if current.err != nil {
		c.failures++
		delay := math.Min(float64(longestDelay), float64(firstDelay)*math.Pow(2, math.Min(float64(c.failures-1), 16)))
		c.restsUntil = time.Now().Add(time.Duration(delay * (1 - rand.Float64()/2))) // so that not all come at once
	} else {
		c.failures, c.link = 0, current.link
		if c.isClosed {
			current.link.act(func(session *Session, _ time.Time) { session.Close() })
		}
	}
	close(current.done)
}

func (c *Client) dial() (*link, *Error) {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: connectTimeout / 2}
	conn, err := dialer.Dial(c.network, c.address)
	if err != nil {
		return nil, caused(newError(ConnectionFailed, "cannot connect to %s: %s; is 'xformd serve' running there?", c.name, words(err)), err)
	}
	conn.SetDeadline(time.Now().Add(openingTimeout))
	silent := newError(ConnectionFailed, "%s accepted the connection and did not answer within %v s", c.name, openingTimeout.Seconds())
	if c.tls != nil {
		secure := tls.Client(conn, c.tls)
		if err := secure.Handshake(); isTimeout(err) {
			conn.Close()
			return nil, caused(silent, err)
		} else if err != nil {
			conn.Close()
			return nil, caused(newError(ConnectionFailed, "cannot connect to %s: TLS failed: %s", c.name, err), err)
		}
		conn = secure
	}
	conn.SetDeadline(time.Time{})
	made := newLink(conn, NewSession(c.name, c.maxResultBytes, c.token))
	select {
	case outcome := <-made.opening:
		made.mutex.Lock()
		ended := made.ended
		made.mutex.Unlock()
		if outcome.Err != nil && ended != nil && strings.Contains(ended.Error(), "tls: ") { // it wants another certificate
			return nil, caused(newError(ConnectionFailed, "cannot connect to %s: TLS failed: %s", c.name, ended), ended)
		}
		if outcome.Err != nil {
			return nil, outcome.Err
		}
		return made, nil
	case <-time.After(openingTimeout):
		conn.Close()
		return nil, silent
	}
}

func caused(err *Error, cause error) *Error {
	err.cause = cause
	return err
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// words says why there is no connection, as the other clients do.
func words(err error) string {
	var unknown *net.DNSError
	var number syscall.Errno
	switch {
	case errors.As(err, &unknown):
		return "DNS lookup failed: no results for hostname lookup: " + unknown.Name
	case isTimeout(err):
		return "it does not answer"
	case errors.As(err, &number):
		text := number.Error()
		return strings.ToUpper(text[:1]) + text[1:]
	}
	return err.Error()
}
