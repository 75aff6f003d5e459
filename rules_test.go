// Package kuorum_test holds the rules of this source tree that no linter knows:
// which package may import which, and how large a file or a package may grow.
package kuorum_test

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// layers are the packages of internal, the lowest first. Each imports only
// from layers below its own; siblings meet further up, through interfaces that
// their user declares. A new package needs a place here.
var layers = []string{
	"cluster host step testnet",
	"pki supervise bundle agent advise datadir ledger vrrp tickle handover loadbalancer",
	"component doctor endpoint etcd fault history keyring kubeapi kubeconfig",
	"apiservice lease membership relocation",
	"node lab",
	"cli",
}

const (
	maxLines = 400 // of a file that is no test
	maxFiles = 12  // of a package, without tests
)

// floors is the number of each package's layer.
func floors() map[string]int {
	floor := map[string]int{}
	for i, names := range layers {
		for name := range strings.FieldsSeq(names) {
			floor[name] = i
		}
	}
	return floor
}

func TestImportsPointDownwards(t *testing.T) {
	const imports = `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}{{range .TestImports}} {{.}}{{end}}{{range .XTestImports}} {{.}}{{end}}`
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", imports, "./internal/...").Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v", err)
	}
	floor, seen := floors(), map[string]bool{}
	for line := range strings.Lines(string(out)) {
		paths := strings.Fields(line)
		name := ours(paths[0])
		mine, placed := floor[name]
		if !placed {
			t.Errorf("internal/%s has no layer: give it one above, or make it part of a package that has", name)
			continue
		}
		seen[name] = true
		for _, imported := range paths[1:] {
			other := ours(imported)
			if other == "" || other == name {
				continue
			}
			if theirs, placed := floor[other]; placed && theirs >= mine {
				t.Errorf("internal/%s of layer %d imports internal/%s of layer %d", name, mine, other, theirs)
			}
		}
	}
	for name := range floor {
		if !seen[name] {
			t.Errorf("layers names internal/%s, which does not exist", name)
		}
	}
}

// TestOnlyTestsHaveNetworks: testnet ends the test that it is called from, and fails
// where a program could not.
func TestOnlyTestsHaveNetworks(t *testing.T) {
	const imports = `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags", "lab", "-f", imports, "./...").Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v", err)
	}
	if !strings.Contains(string(out), "\nkuorum/internal/testnet ") {
		t.Fatalf("the list is not that of the packages: %.200s", out)
	}
	for line := range strings.Lines(string(out)) {
		paths := strings.Fields(line)
		for _, imported := range paths[1:] {
			if ours(imported) == "testnet" {
				t.Errorf("%s imports internal/testnet outside of its tests", paths[0])
			}
		}
	}
}

// TestProgramLinksNoKubernetes: ten of our processes run in a lab of three
// servers, and the types and clients of Kubernetes are half of the program and
// a third of the memory of each (ADR 0024). Tests may use them as referees.
func TestProgramLinksNoKubernetes(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/kuorum").Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v", err)
	}
	if !strings.Contains(string(out), "kuorum/internal/cli\n") {
		t.Fatalf("the list is not that of the program: %.200s", out)
	}
	for name := range strings.Lines(string(out)) {
		for _, heavy := range []string{"k8s.io/api/", "k8s.io/client-go/", "k8s.io/apimachinery/pkg/runtime"} {
			if strings.HasPrefix(name, heavy) {
				t.Errorf("the program links %s: ask by internal/kubeapi", strings.TrimSpace(name))
			}
		}
	}
}

// ours is what follows kuorum/internal/ in an import path, or nothing.
func ours(importPath string) string {
	name, _ := strings.CutPrefix(importPath, "kuorum/internal/")
	if name == importPath {
		return ""
	}
	return name
}

func TestPackagesStaySmallAndExplained(t *testing.T) {
	files, comments := map[string]int{}, map[string]int{}
	for _, file := range sources(t, "internal", "cmd") {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(src, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, %d are allowed", file, n, maxLines)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(file)
		files[dir]++
		if parsed.Doc != nil {
			comments[dir]++
		}
	}
	for dir, n := range files {
		// In cli a file is a command, and there are many.
		if n > maxFiles && dir != filepath.Join("internal", "cli") {
			t.Errorf("%s has %d files, %d are allowed", dir, n, maxFiles)
		}
		if comments[dir] != 1 {
			t.Errorf("%s has %d package comments, exactly one is wanted", dir, comments[dir])
		}
	}
}

// sources lists the Go files below dirs that are no tests.
func sources(t *testing.T, dirs ...string) []string {
	t.Helper()
	var found []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && path.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go") {
				found = append(found, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) == 0 {
		t.Fatalf("no sources below %v", dirs)
	}
	return found
}

// TestGuaranteesNameTests holds docs/guarantees.md to its word: every test it
// names exists.
func TestGuaranteesNameTests(t *testing.T) {
	page, err := os.ReadFile("docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(source), -1) {
			written[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		if !written[m[1]] {
			t.Errorf("docs/guarantees.md names %s, which does not exist", m[1])
		}
	}
	if len(named) < 40 {
		t.Errorf("docs/guarantees.md names %d tests only: is it read right?", len(named))
	}
}
