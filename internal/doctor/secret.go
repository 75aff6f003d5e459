package doctor

import (
	"bytes"
	"regexp"
)

// removedLine stands where a line with a secret was.
const removedLine = "[removed: secret]"

// filter takes lines with secrets out of texts.
type filter struct {
	secrets      []secret
	body, header *regexp.Regexp
}

// secret is what one kind of secret looks like: looking for a hint first is a
// hundred times faster than the pattern alone.
type secret struct {
	hint    string
	pattern *regexp.Regexp // nil: the hint is enough
}

// newFilter knows what kuorum's secrets look like. It is the last of the
// guards: what holds secrets is not read in the first place.
func newFilter() *filter {
	return &filter{
		secrets: []secret{
			{"PRIVATE KEY", nil},     // the begin and the end of a key in PEM
			{"client-key-data", nil}, // of a kubeconfig
			{"eyJ", regexp.MustCompile(`eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.`)}, // a token of a service account
			{"earer", regexp.MustCompile(`[Bb]earer\s+[\w.~+/-]{16,}`)}, // any other one
			// A key in PEM in base 64; a certificate is none.
			{"LS0tLS1CRUdJTi", regexp.MustCompile(`LS0tLS1CRUdJTi(BQUklW|BFQyBQUklW|BSU0EgUFJJ|BFTkNSWVBU|BPUEVOU1NI)`)},
		},
		// Lines of a key between its begin and its end, bare or quoted.
		body:   regexp.MustCompile(`^[\s"'|,>]*[A-Za-z0-9+/]*={0,2}(\\n)?[\s"',]*$`),
		header: regexp.MustCompile(`^\s*(Proc-Type|DEK-Info|Comment): `),
	}
}

func (f *filter) isSecret(line []byte) bool {
	for _, s := range f.secrets {
		if bytes.Contains(line, []byte(s.hint)) && (s.pattern == nil || s.pattern.Match(line)) {
			return true
		}
	}
	return holdsToken(line)
}

// A join token is tokenID characters, a dot and tokenSecret more (package
// pki).
const (
	tokenID     = 10
	tokenSecret = 32
)

func holdsToken(line []byte) bool {
	for at, c := range line {
		if c == '.' && at >= tokenID && len(line)-at > tokenSecret &&
			allToken(line[at-tokenID:at]) && allToken(line[at+1:at+1+tokenSecret]) {
			return true
		}
	}
	return false
}

func allToken(text []byte) bool {
	for _, c := range text {
		if (c < 'a' || 'z' < c) && (c < '2' || '7' < c) {
			return false
		}
	}
	return true
}

// clean is data with each line that holds a secret replaced, and how many
// were. A key of which only one end is there goes as far as it looks like one.
func (f *filter) clean(data []byte) (clean []byte, removed int) {
	lines := bytes.Split(data, []byte("\n"))
	drop := make([]bool, len(lines))
	inKey := false
	for i, line := range lines {
		switch {
		case f.isSecret(line):
			drop[i] = true
			begins := bytes.LastIndex(line, []byte("-----BEGIN")) > bytes.LastIndex(line, []byte("-----END"))
			if !begins && !inKey && bytes.Contains(line, []byte("-----END")) {
				f.dropBefore(lines[:i], drop)
			}
			inKey = begins
		case inKey && (f.body.Match(line) || f.header.Match(line)):
			drop[i] = true
		default:
			inKey = false
		}
	}
	last := len(lines) - 1
	for i := range lines {
		if drop[i] && (i < last || len(lines[i]) > 0) {
			lines[i] = []byte(removedLine)
			removed++
		}
	}
	return bytes.Join(lines, []byte("\n")), removed
}

// dropBefore takes what looks like the rest of a key before its end: its begin
// was cut off.
func (f *filter) dropBefore(lines [][]byte, drop []bool) {
	for i := len(lines) - 1; i >= 0 && !drop[i] && f.body.Match(lines[i]); i-- {
		drop[i] = true
	}
}
