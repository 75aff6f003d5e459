package kubeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Keys of a kubeconfig. An entry of each list has a name, and under the list's
// name in the singular what is meant by it.
const (
	clusters       = "clusters"
	users          = "users"
	contexts       = "contexts"
	currentContext = "current-context"
)

func content(list string) string { return strings.TrimSuffix(list, "s") }

// tree is a kubeconfig with everything that is in it, what we do not know and
// comments included.
type tree struct{ root *yaml.Node }

// parse reads a kubeconfig as kubectl does: what is missing is empty. It
// refuses what it could not write back as it was.
func parse(data []byte) (tree, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return newTree(), nil
	} else if err != nil {
		return tree{}, err
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return tree{}, errors.New("it holds more than one document")
	}
	if err := check(&document); err != nil {
		return tree{}, err
	}
	if document.Content[0].Kind != yaml.MappingNode {
		return newTree(), nil // null
	}
	return tree{document.Content[0]}, nil
}

// check refuses what kubectl would refuse, or read in another way than we do.
func check(document *yaml.Node) error {
	var known struct {
		APIVersion string         `yaml:"apiVersion"`
		Kind       string         `yaml:"kind"`
		Current    string         `yaml:"current-context"`
		Clusters   []entry        `yaml:"clusters"`
		Users      []entry        `yaml:"users"`
		Contexts   []entry        `yaml:"contexts"`
		Rest       map[string]any `yaml:",inline"`
	}
	if err := document.Decode(&known); err != nil {
		return err
	}
	for _, list := range [][]entry{known.Clusters, known.Users, known.Contexts} {
		if name, twice := repeated(list); twice {
			return fmt.Errorf("it has more than one %q in a list", name)
		}
	}
	if (known.APIVersion != "" && known.APIVersion != "v1") || (known.Kind != "" && known.Kind != "Config") {
		return fmt.Errorf("it is a %s of %s, and no Config of v1", known.Kind, known.APIVersion)
	}
	return nil
}

func newTree() tree {
	return tree{mapping(scalar("apiVersion"), scalar("v1"), scalar("kind"), scalar("Config"))}
}

// entry is an element of a list.
type entry struct {
	Name string         `yaml:"name"`
	Rest map[string]any `yaml:",inline"`
}

func repeated(list []entry) (string, bool) {
	seen := map[string]bool{}
	for _, e := range list {
		if seen[e.Name] {
			return e.Name, true
		}
		seen[e.Name] = true
	}
	return "", false
}

func (t tree) encode() ([]byte, error) {
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	encoder.CompactSeqIndent() // as kubectl writes it
	if err := encoder.Encode(t.root); err != nil {
		return nil, err
	}
	return out.Bytes(), encoder.Close()
}

// current is the name of the current context, or nothing.
func (t tree) current() string {
	if n := value(t.root, currentContext); n != nil {
		return n.Value
	}
	return ""
}

func (t tree) setCurrent(name string) { set(t.root, currentContext, scalar(name)) }

// get is what the entry of that name in a list has beside its name; nil: there
// is none.
func (t tree) get(list, name string) *yaml.Node {
	elements := value(t.root, list)
	if elements == nil {
		return nil
	}
	for _, e := range elements.Content {
		if named(e, name) {
			return value(follow(e), content(list))
		}
	}
	return nil
}

// chosen is the cluster and the user of the current context.
func (t tree) chosen() (cluster, user *yaml.Node, err error) {
	context := t.get(contexts, t.current())
	if context == nil {
		return nil, nil, errors.New("it has no current context")
	}
	if n := value(context, content(clusters)); n != nil {
		cluster = t.get(clusters, n.Value)
	}
	if n := value(context, content(users)); n != nil {
		user = t.get(users, n.Value)
	}
	if cluster == nil || user == nil {
		return nil, nil, fmt.Errorf("the context %s lacks its cluster or its user", t.current())
	}
	return cluster, user, nil
}

// put replaces the entry of that name in a list, or adds it as the last one.
func (t tree) put(list, name string, body *yaml.Node) {
	made := mapping(scalar(content(list)), body, scalar("name"), scalar(name))
	elements := value(t.root, list)
	if elements == nil || elements.Kind != yaml.SequenceNode {
		elements = &yaml.Node{Kind: yaml.SequenceNode}
		set(t.root, list, elements)
	}
	at := slices.IndexFunc(elements.Content, func(e *yaml.Node) bool { return named(e, name) })
	if at < 0 {
		elements.Content = append(elements.Content, made)
		elements.Style &^= yaml.FlowStyle // "[]" is how an empty list is written
		return
	}
	elements.Content[at] = made
}

// remove takes the entry of that name out of a list.
func (t tree) remove(list, name string) {
	if elements := value(t.root, list); elements != nil {
		elements.Content = slices.DeleteFunc(elements.Content, func(e *yaml.Node) bool { return named(e, name) })
	}
}

func named(element *yaml.Node, name string) bool {
	n := value(follow(element), "name")
	return n != nil && n.Value == name
}

// value is what a mapping has under key, or nil.
func value(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return follow(m.Content[i+1])
		}
	}
	return nil
}

// set gives a mapping a value under key, in place of the one that it has.
func set(m *yaml.Node, key string, v *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = v
			return
		}
	}
	m.Content = append(m.Content, scalar(key), v)
}

// follow is the node that an alias stands for, or n itself.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// scalar is a string; one that would be read as something else, or that is
// empty, gets quotes.
func scalar(text string) *yaml.Node {
	n := new(yaml.Node)
	n.SetString(text)
	return n
}

// mapping has a key, a value and so on.
func mapping(pairs ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Content: pairs}
}
