package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile is the size in bytes of the largest cluster.yaml that is read; a
// hundred nodes with many labels need a twentieth of it.
const maxFile = 1 << 20

// Parse reads a cluster.yaml, fills in the defaults and validates the result.
// file is the name shown in errors; it is not opened. The file is read
// strictly: what is not understood is an error, never ignored.
//
// The error is a *Problem with ExitUsage. Its Why lists everything wrong with
// the file, in the order of the file, as "FILE:LINE:COLUMN: FIELD: TEXT". A
// field that is missing is reported at the place that should contain it.
func Parse(file string, data []byte) (*Spec, error) {
	spec, issues := parse(data)
	if len(issues) > 0 {
		problem := report(file+" is not valid", file, issues)
		problem.Do = "correct the file and run the command again"
		return nil, problem
	}
	return spec, nil
}

func parse(data []byte) (*Spec, []issue) {
	root, issues := read(data)
	if len(issues) > 0 {
		return nil, issues
	}
	var spec Spec
	d := decode(root, &spec)
	if foreign := d.independent(spec.foreignHead()); len(foreign) > 0 {
		// The fields of another kind of file are not worth a word.
		return nil, foreign
	}
	missing := spec.missingHead()
	spec.Default()
	found := d.independent(slices.Concat(missing, spec.issues()))
	return &spec, slices.Concat(d.issues, found)
}

// read checks the bytes and the syntax, and returns the only document's
// content.
func read(data []byte) (*yaml.Node, []issue) {
	if len(data) > maxFile {
		return nil, []issue{{text: fmt.Sprintf("too large: %d bytes, of which at most %d are read", len(data), maxFile)}}
	}
	if at, ok := firstInvalid(data); !ok {
		return nil, []issue{{at: at, text: "not UTF-8 text"}}
	}
	documents, err := split(data)
	if err != nil {
		return nil, []issue{syntaxIssue(data, err)}
	}
	if len(documents) > 1 {
		second := documents[1]
		return nil, []issue{{
			at:   position{second.Line, second.Column},
			text: "more than one document: a file describes one cluster",
		}}
	}
	if len(documents) == 0 || isNull(documents[0].Content[0]) {
		return nil, []issue{{
			at:   position{line: 1},
			text: fmt.Sprintf("the file is empty: it starts with \"apiVersion: %s\" and \"kind: %s\"", APIVersion, Kind),
		}}
	}
	return documents[0].Content[0], nil
}

// firstInvalid finds the first byte that is not part of UTF-8 text.
func firstInvalid(data []byte) (position, bool) {
	if utf8.Valid(data) {
		return position{}, true
	}
	at := position{line: 1, column: 1}
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 {
			break
		}
		at.column++
		if r == '\n' {
			at = position{line: at.line + 1, column: 1}
		}
		data = data[size:]
	}
	return at, false
}

// split parses all documents of a file. Nodes are not expanded: an alias stays
// a pointer, so a small file cannot grow.
func split(data []byte) ([]*yaml.Node, error) {
	var documents []*yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot parse YAML: %w", err)
		}
		documents = append(documents, &document)
	}
}

// yamlPrefix is what the library puts before its message. Its line is that of
// the mapping or list around the mistake, off by one at times, or missing.
var yamlPrefix = regexp.MustCompile(`^.*?yaml: (line \d+: )?`)

// syntaxIssue says what the library says, at the line where it would stop if
// the rest of the file were missing.
func syntaxIssue(data []byte, err error) issue {
	lines := bytes.SplitAfter(data, []byte("\n"))
	text := yamlPrefix.ReplaceAllString(err.Error(), "")
	before := sort.Search(len(lines)-1, func(i int) bool {
		_, err := split(bytes.Join(lines[:i+1], nil))
		return err != nil && yamlPrefix.ReplaceAllString(err.Error(), "") == text
	})
	line := string(lines[before])
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	if strings.Contains(indent, "\t") {
		text += ", a tab: indent with spaces"
	}
	return issue{at: position{line: before + 1}, text: "not YAML: " + text}
}

// YAML writes the spec with its defaults filled in, the fields in the order
// of the types. Parse reads the same spec from it. s itself is not changed.
func (s *Spec) YAML() ([]byte, error) {
	full := *s
	full.Spec.Nodes = slices.Clone(s.Spec.Nodes)
	full.Default()
	// JSON is YAML, in the order of the struct and under the names of its
	// tags. What is left is to write it as people do.
	compact, err := json.Marshal(full)
	if err != nil {
		return nil, fmt.Errorf("cannot write spec: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(compact, &document); err != nil {
		return nil, fmt.Errorf("cannot write spec: %w", err)
	}
	if err := unquote(&document); err != nil {
		return nil, fmt.Errorf("cannot write spec: %w", err)
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return nil, fmt.Errorf("cannot write spec: %w", err)
	}
	return out.Bytes(), nil
}

// unquote takes away JSON's braces, and its quotes where text does not need
// them. Text that older YAML reads as something else ("on") keeps them.
func unquote(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		return n.Encode(n.Value)
	}
	n.Style = 0
	for _, content := range n.Content {
		if err := unquote(content); err != nil {
			return err
		}
	}
	return nil
}
