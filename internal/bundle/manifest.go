package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
)

// ManifestName is the file that says what a bundle holds.
const ManifestName = "manifest.json"

// Manifest is what a bundle holds.
type Manifest struct {
	Parts []Part `json:"parts"`
}

// Part is one file of a bundle: a program or a container image.
type Part struct {
	Name    string `json:"name"`
	Version string `json:"version"` // upstream's, as "v1.36.3"
	File    string `json:"file"`    // bin/NAME or images/NAME, below the bundle's directory
	SHA256  string `json:"sha256"`  // of the file, in hex
	Size    int64  `json:"size"`    // of the file, in bytes
	// Links are further names of the file in its directory: a program of
	// several commands acts by the name it is called by.
	Links []string `json:"links,omitempty"`
}

// ParseManifest reads a manifest and refuses one that could make a file
// outside of the bundle's own directory.
func ParseManifest(data []byte) (Manifest, error) {
	var m Manifest
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("cannot read the bundle's manifest: %w", err)
	}
	if err := m.validate(); err != nil {
		return Manifest{}, fmt.Errorf("cannot use the bundle's manifest: %w", err)
	}
	return m, nil
}

func (m Manifest) validate() error {
	file := regexp.MustCompile(`^(bin|images)/[a-z0-9][a-z0-9._-]*$`)
	sum := regexp.MustCompile(`^[0-9a-f]{64}$`)
	if len(m.Parts) == 0 {
		return errors.New("it names no parts")
	}
	seen := map[string]bool{}
	for _, p := range m.Parts {
		if p.Name == "" || p.Version == "" || p.Size < 0 || !sum.MatchString(p.SHA256) {
			return fmt.Errorf("part %q lacks a name, a version, a size or a SHA-256", p.File)
		}
		names := []string{p.File}
		for _, link := range p.Links {
			names = append(names, path.Dir(p.File)+"/"+link)
		}
		for _, name := range names {
			if !file.MatchString(name) {
				return fmt.Errorf("%q is not of the form bin/NAME or images/NAME", name)
			}
			if seen[name] {
				return fmt.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
	}
	return nil
}

// JSON is the manifest as it is written to disk: parts ordered by file.
func (m Manifest) JSON() ([]byte, error) {
	data, err := json.MarshalIndent(m.canonical(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the bundle's manifest: %w", err)
	}
	return append(data, '\n'), nil
}

// Digest is the SHA-256, in hex, of the manifest's canonical form: JSON
// without white space, parts ordered by file, links by name. Since parts carry
// their own sums, two bundles of the same digest hold the same bytes.
func (m Manifest) Digest() (string, error) {
	data, err := json.Marshal(m.canonical())
	if err != nil {
		return "", fmt.Errorf("cannot digest the bundle's manifest: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// Part returns the part of that name.
func (m Manifest) Part(name string) (Part, bool) {
	i := slices.IndexFunc(m.Parts, func(p Part) bool { return p.Name == name })
	if i < 0 {
		return Part{}, false
	}
	return m.Parts[i], true
}

func (m Manifest) canonical() Manifest {
	parts := slices.Clone(m.Parts)
	for i := range parts {
		parts[i].Links = slices.Sorted(slices.Values(parts[i].Links))
	}
	slices.SortFunc(parts, func(a, b Part) int { return cmp.Compare(a.File, b.File) })
	return Manifest{Parts: parts}
}

func size(parts []Part) int64 {
	var sum int64
	for _, p := range parts {
		sum += p.Size
	}
	return sum
}
