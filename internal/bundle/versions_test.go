package bundle

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goMod is the part of a go.mod file that pins versions.
type goMod struct {
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
}

func readGoMod(t *testing.T, dir string) goMod {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json", filepath.Join(dir, "go.mod"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot read %s/go.mod: %v", dir, err)
	}
	var m goMod
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// kubernetesPin is the version of Kubernetes as its libraries number it:
// v0.36.3 for v1.36.3.
func kubernetesPin(t *testing.T) string {
	t.Helper()
	for _, r := range readGoMod(t, "../../upstream/kubernetes").Require {
		if r.Path == "k8s.io/kubernetes" {
			return "v0" + strings.TrimPrefix(r.Version, "v1")
		}
	}
	t.Fatal("upstream/kubernetes/go.mod does not pin k8s.io/kubernetes")
	return ""
}

// The release of Kubernetes is decided in one place. A replace that is
// forgotten in an upgrade would link two releases into one program.
func TestUpstreamKubernetesIsOneRelease(t *testing.T) {
	want := kubernetesPin(t)
	m := readGoMod(t, "../../upstream/kubernetes")
	replaced := map[string]bool{}
	for _, r := range m.Replace {
		replaced[r.Old.Path] = true
		if r.New.Path != r.Old.Path || r.New.Version != want {
			t.Errorf("%s is replaced by %s %s, want %s %s", r.Old.Path, r.New.Path, r.New.Version, r.Old.Path, want)
		}
	}
	for _, r := range m.Require {
		if r.Version == "v0.0.0" && !replaced[r.Path] {
			t.Errorf("%s has no version of its own and no replacement", r.Path)
		}
	}
	for _, path := range []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go", "k8s.io/apiserver", "k8s.io/kubelet"} {
		if !replaced[path] {
			t.Errorf("%s is not replaced by that of the release", path)
		}
	}
}

// We talk to the cluster with the client of its own release.
func TestOwnClientIsOfTheSameRelease(t *testing.T) {
	want := kubernetesPin(t)
	found := 0
	for _, r := range readGoMod(t, "../..").Require {
		switch r.Path {
		case "k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go":
			found++
			if r.Version != want {
				t.Errorf("go.mod has %s %s, upstream/kubernetes/go.mod wants %s", r.Path, r.Version, want)
			}
		}
	}
	if found != 3 {
		t.Errorf("go.mod requires %d of k8s.io/api, apimachinery and client-go", found)
	}
}
