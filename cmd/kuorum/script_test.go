package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"kuorum/internal/cluster"
)

// nobody is the uid and gid of a user without any right of its own.
const nobodyID = 65534

// TestMain makes this test binary be kuorum, and a few tools of the scripts,
// when it is called by their names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"kuorum": main, "kubectl": main, "etcdutl": main,
		"nobody": asNobody,
	})
}

// TestScripts runs what people type, each script with a home, a kubeconfig and
// a place for labs of its own. None may start a lab: what every `up` in them
// meets is refused before.
func TestScripts(t *testing.T) {
	bundle, err := filepath.Abs("../../build/bundle")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bundle, "manifest.json")); err != nil {
		t.Fatalf("there is no bundle: run make bundle first: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("KUORUM_STATE", filepath.Join(env.WorkDir, "state"))
			env.Setenv("KUORUM_BUNDLE", bundle)
			return openToAll(env.WorkDir)
		},
		Condition: func(word string) (bool, error) {
			if word == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", word)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"lab":    fabricate,
			"nolabs": noLabs,
			"image":  writeImage,
			"cut":    cut,
		},
	})
}

// openToAll lets every user pass to the script's directory: some of its
// programs run without root's rights.
func openToAll(dir string) error {
	for _, path := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("kuorum")
	if err != nil {
		return err
	}
	return os.Chmod(filepath.Dir(filepath.Dir(program)), 0o755)
}

// exits CODE COMMAND... runs a command that must end with that very code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// fabricate NAME... writes labs that are stopped: three servers each.
func fabricate(ts *testscript.TestScript, neg bool, names []string) {
	if neg || len(names) == 0 {
		ts.Fatalf("usage: lab NAME...")
	}
	for _, name := range names {
		spec, err := cluster.New(name, 3, 0)
		ts.Check(err)
		text, err := spec.YAML()
		ts.Check(err)
		write := func(file, data string) {
			path := filepath.Join(ts.Getenv("KUORUM_STATE"), "labs", name, file)
			ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
			ts.Check(os.WriteFile(path, []byte(data), 0o644))
		}
		write("cluster.yaml", string(text))
		write("state.json", `{"port": 6443, "created": "2026-01-02T03:04:05Z"}`)
		write("admin.conf", kubeconfig("kuorum-"+name))
		write("machines/cp1/var/log/kuorum/etcd.log", "first\nsecond\nthird\n")
		write("machines/cp1/var/log/kuorum/kubelet.log", "one\n")
		write("machines/cp1/console.log", "booted\n")
	}
}

func kubeconfig(context string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
clusters: [{name: %[1]s, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: %[1]s, user: {}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
`, context)
}

// noLabs fails when the state directory holds anything that looks like a lab.
func noLabs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: nolabs")
	}
	entries, err := os.ReadDir(filepath.Join(ts.Getenv("KUORUM_STATE"), "labs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Check(err)
	}
	if i := slices.IndexFunc(entries, os.DirEntry.IsDir); i >= 0 {
		ts.Fatalf("a lab was made: %s", entries[i].Name())
	}
}

// writeImage FILE CONTENT writes an OCI archive of one blob. Its name is the
// digest of "good", whatever its content is.
func writeImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: image FILE CONTENT")
	}
	sum := sha256.Sum256([]byte("good"))
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range [][2]string{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
		{"index.json", `{"schemaVersion":2,"manifests":[]}`},
		{"blobs/sha256/" + hex.EncodeToString(sum[:]), args[1]},
	} {
		ts.Check(w.WriteHeader(&tar.Header{Name: f[0], Size: int64(len(f[1])), Mode: 0o644}))
		_, err := w.Write([]byte(f[1]))
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out.Bytes(), 0o644))
}

// cut FILE BYTES shortens a file to that size.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cut FILE BYTES")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}

// asNobody becomes the program it is given without root's rights.
func asNobody() {
	err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobodyID), syscall.Setuid(nobodyID))
	if err == nil {
		err = become(os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "nobody:", err)
	os.Exit(99)
}

func become(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}
