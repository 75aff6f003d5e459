package advise

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPageHasEveryCode holds docs/findings.md to codes.go: each code has one
// row there, and each row's code exists. The severities of a row are those
// that the scenes bring about, so that each code has a scene as well.
func TestPageHasEveryCode(t *testing.T) {
	documented := rows(t)
	declared := declaredCodes(t)
	var names []string
	for code := range documented {
		names = append(names, code)
	}
	slices.Sort(names)
	slices.Sort(declared)
	if diff := cmp.Diff(declared, names); diff != "" {
		t.Errorf("docs/findings.md and codes.go differ (-code +page):\n%s", diff)
	}
	for code, severities := range seen(t) {
		if diff := cmp.Diff(severities, documented[code]); diff != "" {
			t.Errorf("severities of %s (-scenes +page):\n%s", code, diff)
		}
		delete(documented, code)
	}
	for code := range documented {
		t.Errorf("no scene has the finding %s", code)
	}
}

// rows are the codes of the page and the severities it gives for them.
func rows(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/findings.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([a-z, ]+) \\| [^|]+ \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1) {
		if found[m[1]] != nil {
			t.Errorf("docs/findings.md has %s twice", m[1])
		}
		found[m[1]] = strings.Split(m[2], ", ")
		slices.Sort(found[m[1]])
	}
	if lines := strings.Count(string(page), "\n| `"); lines != len(found) {
		t.Errorf("docs/findings.md has %d rows, %d are well formed", lines, len(found))
	}
	return found
}

// declaredCodes are the values of the constants in codes.go.
func declaredCodes(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	ast.Inspect(file, func(n ast.Node) bool {
		if literal, ok := n.(*ast.BasicLit); ok {
			code, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, code)
		}
		return true
	})
	if len(found) < 20 {
		t.Fatalf("codes.go has %d codes only: is it read right?", len(found))
	}
	return found
}

// seen are the severities of each code in all scenes.
func seen(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, s := range scenes() {
		for _, f := range s.play(t).Findings {
			if severity := string(f.Severity); !slices.Contains(found[f.Code], severity) {
				found[f.Code] = append(found[f.Code], severity)
				slices.Sort(found[f.Code])
			}
		}
	}
	return found
}
