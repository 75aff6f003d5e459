package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

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
