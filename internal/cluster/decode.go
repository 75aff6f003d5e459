package cluster

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder fills a Spec from a YAML tree. It keeps going after a mistake and
// remembers where each field stands, so that validation can name the place.
type decoder struct {
	issues []issue
	fields map[string]position // by path, of what the file contains
	broken map[string]bool     // paths with an issue
	above  map[string]bool     // paths around those
}

// decode fills out, the pointer to a zero value, and returns what it learned.
func decode(root *yaml.Node, out any) *decoder {
	d := &decoder{
		fields: map[string]position{"": {root.Line, root.Column}},
		broken: map[string]bool{},
		above:  map[string]bool{},
	}
	d.value("", root, reflect.ValueOf(out).Elem())
	return d
}

// wrong records an issue of the value at path.
func (d *decoder) wrong(path, text string) { d.record(d.fields[path], text, path) }

// record keeps an issue. After the field that it is about, paths may name one
// that was probably meant, and must not be reported as missing too.
func (d *decoder) record(at position, text string, paths ...string) {
	d.issues = append(d.issues, issue{at: at, paths: paths, text: text})
	for _, p := range paths {
		d.broken[p] = true
		for p != "" {
			p = parent(p)
			d.above[p] = true
		}
	}
}

// independent drops the issues that may follow from one of the decoder's own
// and gives the others their places.
func (d *decoder) independent(issues []issue) []issue {
	var kept []issue
	for _, i := range issues {
		if slices.ContainsFunc(i.paths, d.spoiled) {
			continue
		}
		i.at = d.place(i.paths)
		kept = append(kept, i)
	}
	return kept
}

// spoiled is whether the value at path is not what the user meant.
func (d *decoder) spoiled(path string) bool {
	if d.above[path] || d.broken[path] {
		return true
	}
	for path != "" {
		path = parent(path)
		if d.broken[path] {
			return true
		}
	}
	return false
}

// place is the position of the first of the fields that the file contains;
// when it has none of them, that of what is around the first.
func (d *decoder) place(paths []string) position {
	for _, path := range paths {
		if at, ok := d.fields[path]; ok {
			return at
		}
	}
	around := paths[0]
	at, ok := d.fields[around]
	for !ok && around != "" {
		around = parent(around)
		at, ok = d.fields[around]
	}
	return at
}

// value decodes n into out. A section without content ("network:" with all
// its lines commented out) counts as absent.
func (d *decoder) value(path string, n *yaml.Node, out reflect.Value) {
	if unsupported := fancy(n); unsupported != "" {
		d.wrong(path, unsupported)
		return
	}
	if _, ok := reflect.TypeAssert[encoding.TextUnmarshaler](out.Addr()); ok {
		d.text(path, n, out)
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		d.object(path, n, out)
	case reflect.Slice:
		d.list(path, n, out)
	case reflect.Map:
		d.entries(path, n, out)
	default:
		d.scalar(path, n, out)
	}
}

// fancy says which feature n uses that no cluster.yaml needs. Without aliases
// a file means what stands in it, and cannot grow while being read.
func fancy(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.AliasNode:
		return fmt.Sprintf("the alias *%s is not supported: write out the value", shorten(n.Value))
	case n.Anchor != "":
		return fmt.Sprintf("the anchor &%s is not supported: remove it", shorten(n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		return fmt.Sprintf("the tag %s is not supported: remove it", shorten(n.Tag))
	}
	return ""
}

func (d *decoder) object(path string, n *yaml.Node, out reflect.Value) {
	names, index := fieldsOf(out.Type())
	d.pairs(path, n, out, func(at, key string, value *yaml.Node) {
		if i, known := index[key]; known {
			d.value(at, value, out.Field(i))
			return
		}
		if meant := Closest(key, names); meant != "" {
			d.record(d.fields[at], fmt.Sprintf("unknown field, did you mean %q?", meant), at, child(path, meant))
			return
		}
		d.wrong(at, "unknown field, the known ones are "+strings.Join(names, ", "))
	})
}

func (d *decoder) entries(path string, n *yaml.Node, out reflect.Value) {
	d.pairs(path, n, out, func(at, key string, value *yaml.Node) {
		entry := reflect.New(out.Type().Elem()).Elem()
		d.value(at, value, entry)
		if out.IsNil() {
			out.Set(reflect.MakeMap(out.Type()))
		}
		out.SetMapIndex(reflect.ValueOf(key), entry)
	})
}

// pairs calls each for the distinct keys of a mapping; at is the key's path.
func (d *decoder) pairs(path string, n *yaml.Node, out reflect.Value, each func(at, key string, value *yaml.Node)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.mismatch(path, n, out)
		return
	}
	first := map[string]int{}
	for pair := range slices.Chunk(n.Content, 2) {
		key, at := pair[0], position{pair[0].Line, pair[0].Column}
		if key.Kind != yaml.ScalarNode || fancy(key) != "" {
			d.record(at, "the name of a field must be plain text", path)
			continue
		}
		field := child(path, key.Value)
		if line, twice := first[key.Value]; twice {
			d.record(at, fmt.Sprintf("given twice, first on line %d", line), field)
			continue
		}
		first[key.Value] = key.Line
		d.fields[field] = at
		each(field, key.Value, pair[1])
	}
}

func (d *decoder) list(path string, n *yaml.Node, out reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.mismatch(path, n, out)
		return
	}
	for i, content := range n.Content {
		at := item(path, i)
		d.fields[at] = position{content.Line, content.Column}
		element := reflect.New(out.Type().Elem()).Elem()
		d.value(at, content, element)
		out.Set(reflect.Append(out, element))
	}
}

// text decodes the types that read themselves.
func (d *decoder) text(path string, n *yaml.Node, out reflect.Value) {
	reader, ok := reflect.TypeAssert[encoding.TextUnmarshaler](out.Addr())
	if !ok || n.ShortTag() != "!!str" {
		d.mismatch(path, n, out)
		return
	}
	if err := reader.UnmarshalText([]byte(n.Value)); err != nil {
		d.wrong(path, err.Error())
	}
}

// scalar decodes what is neither mapping nor list.
func (d *decoder) scalar(path string, n *yaml.Node, out reflect.Value) {
	tag := n.ShortTag()
	switch {
	case n.Kind != yaml.ScalarNode:
		d.mismatch(path, n, out)
	case tag == "!!null":
		d.wrong(path, "has no value: give it "+expected(out.Type())+" or remove the line")
	case out.Kind() == reflect.String && tag == "!!str":
		out.SetString(n.Value)
	case out.Kind() == reflect.Bool && tag == "!!bool":
		out.SetBool(strings.EqualFold(n.Value, "true"))
	case out.Kind() == reflect.Int && tag == "!!int":
		// YAML also has 0x10, 1_000 and 010, which not everyone reads alike.
		number, err := strconv.Atoi(n.Value)
		if err != nil || strconv.Itoa(number) != n.Value {
			d.wrong(path, fmt.Sprintf("%s is not a whole number in plain decimal digits", shorten(n.Value)))
			return
		}
		out.SetInt(int64(number))
	default:
		d.mismatch(path, n, out)
	}
}

// mismatch reports a value of the wrong type.
func (d *decoder) mismatch(path string, n *yaml.Node, out reflect.Value) {
	text := fmt.Sprintf("expected %s, found %s", expected(out.Type()), found(n))
	quotable := n.Kind == yaml.ScalarNode && !isNull(n) && n.ShortTag() != "!!str"
	if out.Kind() == reflect.String && quotable {
		text += ": put it in quotes"
	}
	d.wrong(path, text)
}

// fieldsOf lists the names of a struct's fields in cluster.yaml, in order, and
// the index of each.
func fieldsOf(t reflect.Type) ([]string, map[string]int) {
	var names []string
	index := map[string]int{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
		index[name] = i
	}
	return names, index
}

func expected(t reflect.Type) string {
	if t == reflect.TypeFor[Duration]() {
		return "a duration such as 100ms"
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	default:
		return "text"
	}
}

func found(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode {
		return "a mapping"
	}
	if n.Kind == yaml.SequenceNode {
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "the number " + shorten(n.Value)
	case "!!bool", "!!timestamp":
		return shorten(n.Value)
	default:
		return "the text " + quote(n.Value)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
