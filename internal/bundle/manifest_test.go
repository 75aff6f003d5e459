package bundle

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestManifestRoundTrip(t *testing.T) {
	m := manifestFor(contents())
	got, err := ParseManifest(manifestJSON(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m.canonical(), got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	p, ok := got.Part("etcd")
	if !ok || p.File != "bin/etcd" {
		t.Errorf(`Part("etcd") is %v, %v`, p, ok)
	}
	if _, ok := got.Part("nothing"); ok {
		t.Error(`Part("nothing") is there`)
	}
}

// The digest names a directory: it must not depend on order, and must change
// with anything else.
func TestDigest(t *testing.T) {
	digest := func(change func(*Manifest)) string {
		m := manifestFor(contents()).canonical()
		change(&m)
		sum, err := m.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	same := digest(func(*Manifest) {})
	for range 5 {
		sum, err := manifestFor(contents()).Digest() // in the order of a map
		if err != nil || sum != same {
			t.Fatalf("digest in another order is %s, %v, want %s", sum, err, same)
		}
	}
	if got := digest(func(m *Manifest) { slices.Reverse(m.Parts[1].Links) }); got != same {
		t.Errorf("digest with links in another order is %s, want %s", got, same)
	}
	changes := map[string]func(*Manifest){
		"name":    func(m *Manifest) { m.Parts[0].Name += "x" },
		"version": func(m *Manifest) { m.Parts[0].Version += "x" },
		"file":    func(m *Manifest) { m.Parts[0].File += "x" },
		"sum":     func(m *Manifest) { m.Parts[0].SHA256 = strings.Repeat("0", 64) },
		"size":    func(m *Manifest) { m.Parts[0].Size++ },
		"links":   func(m *Manifest) { m.Parts[0].Links = []string{"x"} },
		"parts":   func(m *Manifest) { m.Parts = m.Parts[1:] },
	}
	for name, change := range changes {
		if digest(change) == same {
			t.Errorf("a change of %s does not change the digest", name)
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	tests := map[string]func(*Manifest){
		"no parts":             func(m *Manifest) { m.Parts = nil },
		"path upwards":         func(m *Manifest) { m.Parts[0].File = "bin/../../etcd" },
		"dot dot":              func(m *Manifest) { m.Parts[0].File = "bin/.." },
		"absolute path":        func(m *Manifest) { m.Parts[0].File = "/bin/etcd" },
		"another directory":    func(m *Manifest) { m.Parts[0].File = "etc/passwd" },
		"deeper directory":     func(m *Manifest) { m.Parts[0].File = "bin/a/b" },
		"hidden file":          func(m *Manifest) { m.Parts[0].File = "bin/.etcd" },
		"empty name of a file": func(m *Manifest) { m.Parts[0].File = "bin/" },
		"new line":             func(m *Manifest) { m.Parts[0].File = "bin/etcd\n" },
		"link upwards":         func(m *Manifest) { m.Parts[0].Links = []string{"../../sh"} },
		"link in a directory":  func(m *Manifest) { m.Parts[0].Links = []string{"a/b"} },
		"link over a part":     func(m *Manifest) { m.Parts[0].Links = []string{"kubernetes"} },
		"file twice":           func(m *Manifest) { m.Parts[0].File = m.Parts[1].File },
		"no name":              func(m *Manifest) { m.Parts[0].Name = "" },
		"no version":           func(m *Manifest) { m.Parts[0].Version = "" },
		"short sum":            func(m *Manifest) { m.Parts[0].SHA256 = "abc" },
		"negative size":        func(m *Manifest) { m.Parts[0].Size = -1 },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			m := manifestFor(contents()).canonical()
			change(&m)
			if _, err := ParseManifest(manifestJSON(t, m)); err == nil {
				t.Error("it was accepted")
			}
		})
	}
	for _, text := range []string{"", "null", "[]", `{"parts":[],"more":1}`} {
		if _, err := ParseManifest([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
