package cluster

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestDuration(t *testing.T) {
	type holder struct {
		D Duration `json:"d,omitempty" yaml:"d,omitempty"`
	}
	for text, want := range map[string]time.Duration{
		"100ms": 100 * time.Millisecond, "1s": time.Second, "1m30s": 90 * time.Second, "-5ms": -5 * time.Millisecond,
	} {
		in := holder{Duration(want)}
		for format, as := range map[string]struct {
			marshal   func(any) ([]byte, error)
			unmarshal func([]byte, any) error
			written   string
		}{
			"JSON": {json.Marshal, json.Unmarshal, `{"d":"` + text + `"}`},
			"YAML": {yaml.Marshal, yaml.Unmarshal, "d: " + text + "\n"},
		} {
			out, err := as.marshal(in)
			if err != nil || string(out) != as.written {
				t.Errorf("%s of %s = %q, %v; want %q", format, text, out, err, as.written)
			}
			var back holder
			if err := as.unmarshal([]byte(as.written), &back); err != nil || back != in {
				t.Errorf("%s %q read as %v, %v", format, as.written, back, err)
			}
		}
	}
}

func TestDurationRefuses(t *testing.T) {
	for _, text := range []string{"", "100", "ms", "100 ms", "1d", "1,5s", "fast", "9999999h"} {
		d := Duration(7)
		err := d.UnmarshalText([]byte(text))
		if err == nil || !strings.Contains(err.Error(), "such as 100ms or 1.5s") {
			t.Errorf("%q: %v", text, err)
		}
		if d != 7 {
			t.Errorf("%q changed the value to %v", text, d)
		}
	}
}

func TestServerNames(t *testing.T) {
	spec, err := NewApart("demo", 3, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := spec.ServerNames(); got != "cp1, cp2" {
		t.Errorf("got %q", got)
	}
	if got := (&Spec{}).ServerNames(); got != "" {
		t.Errorf("of no servers: %q", got)
	}
}

func TestServiceIP(t *testing.T) {
	for services, want := range map[string]netip.Addr{
		"10.96.0.0/16":  netip.MustParseAddr("10.96.0.1"),
		"10.200.0.0/20": netip.MustParseAddr("10.200.0.1"),
		"":              {},
		"services":      {},
	} {
		s := &Spec{Spec: Body{Network: Network{Services: services}}}
		if got := s.ServiceIP(); got != want {
			t.Errorf("ServiceIP of %q = %v, want %v", services, got, want)
		}
	}
}

func TestNodesByRoleAndName(t *testing.T) {
	a, b, c := Node{Name: "a", Role: RoleWorker}, Node{Name: "b", Role: RoleServer}, Node{Name: "c", Role: RoleWorker}
	s := &Spec{Spec: Body{Nodes: []Node{a, b, c}}}
	if diff := cmp.Diff([]Node{b}, s.Servers()); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Node{a, c}, s.Workers()); diff != "" {
		t.Errorf("workers (-want +got):\n%s", diff)
	}
	if n, ok := s.Node("c"); !ok || n.Name != "c" {
		t.Errorf("Node(c) = %v, %v", n, ok)
	}
	if n, ok := s.Node("d"); ok {
		t.Errorf("Node(d) = %v", n)
	}
}

func TestProblem(t *testing.T) {
	cause := errors.New("cause")
	p := &Problem{What: "what", Why: "one\ntwo", Err: cause}
	if got := p.Error(); got != "what: one; two: cause" {
		t.Errorf("Error() = %q", got)
	}
	if !errors.Is(p, cause) {
		t.Error("the cause is not wrapped")
	}
	if p.ExitCode() != ExitError {
		t.Errorf("exit code %d, want %d", p.ExitCode(), ExitError)
	}
	if got := (&Problem{What: "what"}).Error(); got != "what" {
		t.Errorf("Error() = %q", got)
	}
}
