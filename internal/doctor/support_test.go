package doctor

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/pki"
)

// keyText is a private key in PEM, whose every line is a secret.
func keyText(t *testing.T, kind string) string {
	t.Helper()
	body := make([]byte, 300)
	for i := range body {
		body[i] = byte(i * 7)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body}))
}

func TestFilter(t *testing.T) {
	token, err := pki.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	key := keyText(t, "EC PRIVATE KEY")
	lines := strings.Split(strings.TrimSpace(key), "\n")
	certificate := keyText(t, "CERTIFICATE")
	gone := func(n int) string { return strings.Repeat(removedLine+"\n", n) }
	for _, tc := range []struct{ name, in, want string }{
		{"nothing", "one\ntwo\n", "one\ntwo\n"},
		{"an empty file", "", ""},
		{"a key", "before\n" + key + "after all\n", "before\n" + gone(len(lines)) + "after all\n"},
		{"a key at the end", "before\n" + key[:len(key)-1], "before\n" + strings.TrimSuffix(gone(len(lines)), "\n")},
		{"two keys", key + keyText(t, "RSA PRIVATE KEY"), gone(2 * len(lines))},
		{"a key that is indented", "data: |\n    " + strings.Join(lines, "\n    ") + "\nnext: 1\n", "data: |\n" + gone(len(lines)) + "next: 1\n"},
		{"a key in one line of JSON", `{"key":"` + strings.ReplaceAll(key, "\n", `\n`) + `","x":1}` + "\nnext line\n", gone(1) + "next line\n"},
		{"a key without its end", lines[0] + "\n" + lines[1] + "\na log goes on here\n", gone(2) + "a log goes on here\n"},
		{"a key without its begin", "a log goes on here\n" + strings.Join(lines[1:], "\n") + "\n", "a log goes on here\n" + gone(len(lines)-1)},
		{"an encrypted key", lines[0] + "\nProc-Type: 4,ENCRYPTED\n\n" + lines[1] + "\n" + lines[len(lines)-1] + "\n", gone(5)},
		{"a key in base 64", "key: " + base64.StdEncoding.EncodeToString([]byte(key)) + "\nok: 1\n", gone(1) + "ok: 1\n"},
		{"a certificate", certificate + "crt: " + base64.StdEncoding.EncodeToString([]byte(certificate)) + "\n", certificate + "crt: " + base64.StdEncoding.EncodeToString([]byte(certificate)) + "\n"},
		{"a kubeconfig", "users:\n  client-key-data: AAAA\nname: x\n", "users:\n" + gone(1) + "name: x\n"},
		{"a join token", "kuorum join --token " + token.String() + " 10.0.0.1\nnext line\n", gone(1) + "next line\n"},
		{"a token in JSON", `{"token":"` + token.String() + `"}`, removedLine},
		{"a token's ID alone", token.ID + " is used\n", token.ID + " is used\n"},
		{"a token of a service account", "Authorization: Bearer eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2ln\n", gone(1)},
	} {
		got, n := newFilter().clean([]byte(tc.in))
		if diff := cmp.Diff(tc.want, string(got)); diff != "" || n != strings.Count(tc.want, removedLine) {
			t.Errorf("%s: %d lines removed\n%s", tc.name, n, diff)
		}
	}
	for range 200 { // whatever a token is made of
		token, err := pki.NewToken()
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := newFilter().clean([]byte("x=" + token.String() + ";")); string(got) != removedLine {
			t.Fatalf("a token is left: %s", got)
		}
	}
	for _, kind := range []string{"PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"} {
		text := base64.StdEncoding.EncodeToString([]byte(keyText(t, kind)))
		if got, _ := newFilter().clean([]byte(text)); string(got) != removedLine {
			t.Errorf("%s in base 64 is left", kind)
		}
	}
}

// unpack reads an archive of WriteSupport.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || h.Mode != 0o600 {
			t.Errorf("%s: mode %o, %v", h.Name, h.Mode, err)
		}
		files[strings.TrimPrefix(h.Name, "kuorum-support/")] = string(data)
	}
}

func TestWriteSupport(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var long strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&long, "line %d\n", i)
	}
	write(dir+"/log/etcd.log", long.String())
	write(dir+"/log/huge.log", strings.Repeat("x", supportBytes)+"\nits last line\n")
	write(dir+"/log/audit.log", "not asked for\n")
	write(dir+"/log/leaky.log", "one\n"+keyText(t, "PRIVATE KEY")+"two words\n")
	write(dir+"/run/a.json", "a")
	write(dir+"/run/b.txt", "not asked for")
	write(outside+"/shadow", "the host's own")
	for link, target := range map[string]string{"away": outside + "/shadow", "up": "../../shadow", "within": "etcd.log"} {
		if err := os.Symlink(target, filepath.Join(dir, "log", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(dir+"/log/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "support.tar.gz")
	n, err := WriteSupport(file, []Document{{Name: "doc.json", Data: []byte("{\n\"client-key-data\": 1\n}\n")}}, []Source{
		{Name: "n", Root: dir, Files: []string{"log/etcd.log", "log/huge.log", "log/leaky.log", "log/away", "log/up", "log/within", "log/pipe", "log/none", "run/*.json"}},
		{Name: "off", Root: dir + "/nowhere", Files: []string{"x"}},
	}, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got := unpack(t, file)
	if n != len(got) {
		t.Errorf("%d files, it says %d", len(got), n)
	}
	readme := got["README"]
	delete(got, "README")
	for _, want := range []string{"off: ", "there is no log/away", "there is no log/up", "log/pipe is no regular file", "there is no log/none", "n/log/leaky.log: ", "doc.json: 1 lines were replaced"} {
		if !strings.Contains(readme, want) {
			t.Errorf("the README does not say %q:\n%s", want, readme)
		}
	}
	if lines := strings.Count(got["n/log/etcd.log"], "\n"); lines != supportLines || !strings.HasPrefix(got["n/log/etcd.log"], "line 3000\n") {
		t.Errorf("the log has %d lines", lines)
	}
	if huge := got["n/log/huge.log"]; len(huge) > supportBytes || !strings.HasSuffix(huge, "\nits last line\n") {
		t.Errorf("the huge log has %d bytes", len(huge))
	}
	if got["n/log/within"] != got["n/log/etcd.log"] {
		t.Error("a link within the machine was not followed")
	}
	leaky := got["n/log/leaky.log"]
	if !strings.HasPrefix(leaky, "one\n"+removedLine+"\n") || !strings.HasSuffix(leaky, removedLine+"\ntwo words\n") || strings.Contains(leaky, "KEY") {
		t.Errorf("got %q", leaky)
	}
	for name := range got {
		if strings.Contains(got[name], "own") || strings.Contains(got[name], "not asked for") {
			t.Errorf("%s has what it must not: %.80q", name, got[name])
		}
	}
	for _, name := range []string{"n/log/etcd.log", "n/log/huge.log", "n/log/leaky.log", "n/log/within", "n/run/a.json", "doc.json"} {
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("more than was asked for: %v", got)
	}
}
