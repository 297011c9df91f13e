{{- define "tlt-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the release's objects; short enough that suffixes fit. */}}
{{- define "tlt-operator.fullname" -}}
{{- $name := include "tlt-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of cluster-wide objects; releases of one name in two namespaces must not meet. */}}
{{- define "tlt-operator.clusterName" -}}
{{- $fullname := include "tlt-operator.fullname" . -}}
{{- if eq $fullname .Release.Namespace -}}
{{- $fullname -}}
{{- else -}}
{{- printf "%s-%s" .Release.Namespace $fullname | trunc 100 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tlt-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tlt-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "tlt-operator.labels" -}}
{{ include "tlt-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tlt-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tlt-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tlt-operator.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository .Values.image.tag -}}
{{- end -}}
{{- end -}}

{{- define "tlt-operator.trainerPriorityClass" -}}
{{- if .Values.trainerPriorityClass.create -}}
{{- default (printf "%s-trainer" (include "tlt-operator.clusterName" .)) .Values.trainerPriorityClass.name -}}
{{- else -}}
{{- .Values.trainerPriorityClass.name -}}
{{- end -}}
{{- end -}}

{{/* Who else brought the CRD of this name; empty when nobody did or this release did. */}}
{{- define "tlt-operator.crdOwner" -}}
{{- $existing := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- if $existing -}}
{{- $annotations := default (dict) $existing.metadata.annotations -}}
{{- $release := index $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" -}}
{{- if not $release -}}
somebody without Helm
{{- else if or (ne $release .root.Release.Name) (ne $namespace .root.Release.Namespace) -}}
release {{ $release }} in namespace {{ $namespace }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where operators of this release call from, as NetworkPolicy peers in JSON. */}}
{{- define "tlt-operator.peers" -}}
{{- $labels := include "tlt-operator.selectorLabels" . | fromYaml -}}
{{- $namespace := dict "kubernetes.io/metadata.name" .Release.Namespace -}}
{{- $peer := dict "namespaceSelector" (dict "matchLabels" $namespace) "podSelector" (dict "matchLabels" $labels) -}}
{{- list $peer | toJson -}}
{{- end -}}
